"""Owners train on their own disguised images, the cloud averages: Flower's FedAvg and FedOpt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedYogi

from pudica.clients import protocol
from pudica.models.packing import load_model_arrays, select_prefix, validate_statistics
from pudica.models.randomness import numpy_generator
from pudica.strategies.dlmt.config import AggregationConfig
from pudica.strategies.dlmt.learning import Learning
from pudica.strategies.dlmt.session import Model, Session

MOMENTS = ("m_t", "v_t")


@dataclass(frozen=True)
class Trained:
    """What an owner returns of a round."""

    model: Model
    examples: int
    loss: float


class Average:
    """One of Flower's strategies, given what owners returned.

    Parameters
    ----------
    config : AggregationConfig
    """

    def __init__(self, config: AggregationConfig) -> None:
        self.strategy = _strategy(config)
        self.plain = FedAvg()

    def __call__(self, number: int, now: Model, replies: Mapping[int, Trained]) -> Model:
        """Return the next model.

        Parameters
        ----------
        number : int
            Of the round, from 0.
        now : Model
            That was sent.
        replies : mapping of int to Trained
            By node id.
        """
        if hasattr(self.strategy, "current_arrays"):
            # What its configure_train would note of the messages it makes.
            self.strategy.current_arrays = {"weights": now["weights"]}
        found = {}
        for name, strategy in {"weights": self.strategy, "buffers": self.plain}.items():
            messages = [_message(node, name, reply) for node, reply in replies.items()]
            with _quiet():
                arrays, _ = strategy.aggregate_train(number + 1, messages)
            if arrays is None:
                raise RuntimeError("there is nothing to average")
            found[name] = arrays[name].numpy().astype(np.float32)
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the moments of FedOpt; FedAvg has none."""
        kept = {name: getattr(self.strategy, name, None) for name in MOMENTS}
        return {
            name: torch.from_numpy(values["weights"]) for name, values in kept.items() if values
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`tensors` returned."""
        for name, values in tensors.items():
            setattr(self.strategy, name, {"weights": values.numpy()})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower's strategies from writing a line for every round into the progress display."""
    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)


def _strategy(config: AggregationConfig) -> FedAvg:
    if config.name == "fedavg":
        return FedAvg()
    rate, tau = config.learning_rate, config.tau
    if config.name == "fedadagrad":
        return FedAdagrad(eta=rate, tau=tau)
    kind = FedAdam if config.name == "fedadam" else FedYogi
    return kind(eta=rate, beta_1=config.beta_1, beta_2=config.beta_2, tau=tau)


def _message(node: int, name: str, reply: Trained) -> Message:
    """Return one array of a reply as Flower's strategies take it."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(reply.model[name])}),
            "metrics": MetricRecord({"num-examples": reply.examples}),
        }
    )
    return Message(content, node, "train")


class Federated(Learning):
    """Rounds of local training and averaging.

    Parameters
    ----------
    session : Session
    """

    unit = "round"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.average = Average(self.settings.aggregate)
        self.needed = -1

    def run_round(self, number: int) -> float:
        """Let some owners train, and average what they return."""
        session, cohort = self.session, self.session.cohort
        cohort.reset_failures()
        now = self.trained()
        arrays = {name: Array(values) for name, values in now.items()}
        content = session.request({"round": number, "needed": self.needed}, **arrays)
        requests = dict.fromkeys(self._drawn(number), content)
        replies = cohort.send_and_receive(protocol.ROUND, requests, lambda _, c: self._read(c, now))
        session.require_min_replies(len(replies))
        # Weighted by what each said as it joined: nobody counts for more later on.
        trained = {
            name: Trained(model, session.members[name].train, loss)
            for name, (model, loss) in replies.items()
        }
        by_node = {cohort.nodes[name]: reply for name, reply in trained.items()}
        following = self.average(number, now, by_node)
        tensors = {name: torch.from_numpy(values) for name, values in following.items()}
        load_model_arrays(self.model, tensors)
        examples = sum(reply.examples for reply in trained.values())
        return sum(reply.loss * reply.examples for reply in trained.values()) / examples

    def _drawn(self, number: int) -> list[str]:
        """Return the owners of a round, drawn from the run's seed, in their own order."""
        names, count = list(self.session.cohort.nodes), self.settings.owners_a_round
        order = numpy_generator(self.session.seed, "participation", number).permutation(len(names))
        return [names[place] for place in sorted(order[:count])]

    def _read(self, content: RecordDict, now: Model) -> tuple[Model, float]:
        model = {
            name: protocol.array_of(content, name, now[name].shape)
            for name in ("weights", "buffers")
        }
        validate_statistics(torch.from_numpy(model["buffers"]), self.model.named_buffers())
        return model, protocol.number_of(content, "loss", 0)

    def _stand(self, done: int) -> None:
        super()._stand(done)
        self.needed = done - 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what the strategy remembers."""
        return {f"strategy/{name}": value for name, value in self.average.tensors().items()}

    def restore(self, tensors: dict[str, torch.Tensor], done: int) -> None:
        """Put back what the strategy remembers."""
        self.average.restore(select_prefix("strategy/", tensors))
        self.needed = done - 1
