"""Owners train on their own disguised images, the cloud averages: Flower's FedAvg and FedOpt."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
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
        self.strategy = _build_strategy(config)
        self.plain = FedAvg()

    def __call__(self, number: int, now: Model, replies: Mapping[int, Trained]) -> Model:
        """Return the model after a round.

        Parameters
        ----------
        number : int
            The round, from 0.
        now : Model
            The model that was sent.
        replies : mapping of int to Trained
            By node id.
        """
        if hasattr(self.strategy, "current_arrays"):
            # FedOpt's configure_train notes them, which is not called here.
            self.strategy.current_arrays = {"weights": now["weights"]}
        model = {}
        for name, strategy in {"weights": self.strategy, "buffers": self.plain}.items():
            messages = [_make_message(node, name, reply) for node, reply in replies.items()]
            with _silence_flower():
                arrays, _ = strategy.aggregate_train(number + 1, messages)
            if arrays is None:
                raise RuntimeError("there is nothing to average")
            model[name] = arrays[name].numpy().astype(np.float32)
        return model

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the moments of FedOpt; FedAvg has none."""
        kept = {name: getattr(self.strategy, name, None) for name in MOMENTS}
        return {
            name: torch.from_numpy(values["weights"]) for name, values in kept.items() if values
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load what :meth:`tensors` returned."""
        for name, values in tensors.items():
            setattr(self.strategy, name, {"weights": values.numpy()})


@contextmanager
def _silence_flower() -> Iterator[None]:
    """Keep Flower's strategies from writing a line for every round into the progress display."""
    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)


def _build_strategy(config: AggregationConfig) -> FedAvg:
    if config.name == "fedavg":
        return FedAvg()
    rate, tau = config.learning_rate, config.tau
    if config.name == "fedadagrad":
        return FedAdagrad(eta=rate, tau=tau)
    kind = FedAdam if config.name == "fedadam" else FedYogi
    return kind(eta=rate, beta_1=config.beta_1, beta_2=config.beta_2, tau=tau)


def _make_message(node: int, name: str, reply: Trained) -> Message:
    """Return one array of a reply as Flower's strategies take it."""
    arrays = ArrayRecord({name: Array(reply.model[name])})
    metrics = MetricRecord({"num-examples": reply.examples})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), node, "train")


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
        self.last_saved = -1

    def begin_round(self) -> None:
        """Give owners that were given up one more chance."""
        self.cohort.reset_failures()

    def configure_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,  # noqa: ARG002
        grid: Grid,
    ) -> Iterable[Message]:
        """Ask some owners to train."""
        self.prepare(grid, arrays)
        words = {"round": server_round - 1, "needed": self.last_saved}
        content = self.session.request(words, **dict(arrays))
        requests = dict.fromkeys(self._draw_owners(server_round - 1), content)
        return self.cohort.messages(protocol.ROUND, requests)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what the owners return."""
        now = self.trained()

        def read(name: str, content: RecordDict) -> Trained:
            model = {
                name: protocol.array_of(content, name, now[name].shape)
                for name in ("weights", "buffers")
            }
            validate_statistics(torch.from_numpy(model["buffers"]), self.model.named_buffers())
            # Weighted by what each said as it joined: nobody counts for more later on.
            examples = self.session.members[name].train
            private = self.settings.dp is not None
            loss = float("nan") if private else protocol.number_of(content, "loss", 0)
            return Trained(model, examples, loss)

        trained = self.read(replies, protocol.ROUND, read)
        self.session.require_min_replies(len(trained))
        by_node = {self.cohort.nodes[name]: reply for name, reply in trained.items()}
        averaged = self.average(server_round - 1, now, by_node)
        tensors = {name: torch.from_numpy(values) for name, values in averaged.items()}
        load_model_arrays(self.model, tensors)
        examples = sum(reply.examples for reply in trained.values())
        self.loss = sum(reply.loss * reply.examples for reply in trained.values()) / examples
        metrics = self.step_done()
        return self.new_arrays(), metrics

    def _draw_owners(self, number: int) -> list[str]:
        """Return the owners of a round, drawn from the run's seed, in their own order."""
        names, count = list(self.cohort.nodes), self.settings.owners_a_round
        order = numpy_generator(self.session.seed, "participation", number).permutation(len(names))
        return [names[place] for place in sorted(order[:count])]

    def save_checkpoint(self) -> None:
        """As of the base; owners need nothing from before it any more."""
        super().save_checkpoint()
        self.last_saved = self.round - 1

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the strategy remembers."""
        return {f"strategy/{name}": value for name, value in self.average.tensors().items()}

    def restore(self, tensors: Mapping[str, torch.Tensor], done: int) -> None:
        """Load what the strategy remembers."""
        self.average.restore(select_prefix("strategy/", tensors))
        self.last_saved = done - 1
