"""THEMIS as a Flower strategy: organiser and participants train the noise generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from pudica.clients import protocol
from pudica.models.errors import RequestError
from pudica.models.generator import GeneratorTraining, NoiseGenerator
from pudica.models.randomness import derive
from pudica.models.settings import validate_settings
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.members import Member
from pudica.strategies.core.reliable_grid import TooFewParticipants
from pudica.strategies.themis import members, rounds
from pudica.strategies.themis.config import ThemisConfig
from pudica.strategies.themis.ranking import RankingStrategy, stack
from pudica.strategies.themis.screening import Clip, check_reach, combine, read_update

# Settings of the ``themis`` section that a strategy does not have.
EXPERIMENT_ONLY = frozenset(
    {"cases", "stages", "examiner", "release", "epochs", "epochs_per_message", "min_participants"}
)


class Themis(RankingStrategy):
    """Train a noise generator that hides images but keeps the ranking of models (THEMIS).

    A round is an epoch of the public training set; ``update`` decides what its exchanges are. The
    arrays are ``mu`` and ``rho``, each of an image's shape.

    Parameters
    ----------
    M : float
        Upper bound of σ, in the units of the models' input.
    weight : float
        λ of Eq. (2) for a single model; ``joint`` uses λ/F with F models.
    learning_rate, batch_size : float, int
        Of the generator: Adam.
    update : {"joint", "sequential", "averaged"}
        ``joint``: all get the same noisy batch, one step on the sum (Eq. 2 as written).
        ``sequential``: the generator visits one participant after the other (the authors' code).
        ``averaged``: each takes local steps, the organiser averages.
    steps_per_visit : int
        Batches per message: local steps, or with ``joint`` the batches whose gradients are averaged
        into one step.
    noise : {"per-image", "per-batch"}
        The authors' code draws one noise map per batch; averaging the batch removes it.
    order : {"listed", "alphabetical", "reverse", "random"} or list of str
        In which order participants update the generator; ``random`` anew in each round.
    dropouts : int
        So many participants, chosen at random, miss each round (Case 2 of Table 2).
    bystanders : list of str
        Ranked without having trained the generator (generalisation).
    cheaters : list of str
        Train their model together with a noise generator of their own.
    late : dict of str to int
        First round, from 0, of a participant that joins late.
    hostile : dict of str to str
        Attack of a participant on the training, to test defences.
    aggregate : {"mean", "median", "trimmed-mean", "krum"}
        How replies are combined.
    malicious : int
        How many hostile participants ``krum`` and ``trimmed-mean`` assume.
    clip : float or None
        A reply whose norm is more than this many times the median norm is scaled down to it.
        1.5 still holds against one of five that sends −1000 times its gradient, 3 does not;
        None leaves Eq. (2) exactly as it is, undefended.
    validate_every : int
        Participants measure their accuracy on noisy validation images after every so many rounds
        (Figure 4).
    min_nodes, seed, record, patience
        As of :class:`.RecordedStrategy`.

    Raises
    ------
    RequestError
        A setting that is unknown or out of range, by name.
    """

    system = "themis"
    stage = "generator"
    title = "noise generator"
    unit = "step"

    def __init__(
        self,
        *,
        M: float = 1.0,
        min_nodes: int = 1,
        seed: int = 0,
        record: str | Path | None = None,
        patience: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(min_nodes=min_nodes, seed=seed, record=record, patience=patience)
        given = {"M": M, **settings}
        self._configure(validate_settings(ThemisConfig, given, "Themis", EXPERIMENT_ONLY))
        self.training: GeneratorTraining | None = None
        self.clipped = 0
        self.answered: set[str] = set()
        self.losses: list[float] = []
        self.is_closed: Callable[[], bool] = lambda: False
        self._exchanges: list[rounds.Exchange] = []
        self._present: list[str] = []
        self._everyone: list[str] = []

    @classmethod
    def of_experiment(cls, settings: ThemisConfig, seed: int) -> Themis:
        """Return the strategy of one case of an experiment."""
        strategy = cls(min_nodes=settings.min_participants, seed=seed)
        strategy._configure(settings)
        return strategy

    def _configure(self, settings: ThemisConfig) -> None:
        self.settings = settings
        self.unit = "visit" if settings.update == "sequential" else "step"
        self.clip = Clip(settings.clip)
        self._kind = protocol.GRADIENT if settings.update == "joint" else protocol.VISIT

    def settings_to_record(self) -> dict[str, Any]:
        """Return the settings, as in the ``themis`` section of an experiment."""
        chosen = self.settings.model_dump(mode="json", by_alias=True, exclude=set(EXPERIMENT_ONLY))
        return {**chosen, "min_participants": self.min_nodes}

    def initial_arrays(self) -> ArrayRecord:
        """Return the untrained generator for the participants' images."""
        return self.untrained(self.shape, self.settings.M, self.seed)

    def load_arrays(self, arrays: ArrayRecord) -> None:
        """Start with these arrays and a new optimiser."""
        values = stack(arrays, protocol.GENERATOR)
        if tuple(values.shape[1:]) != self.shape:
            raise RequestError(
                f"initial_arrays: mu and rho of shape {tuple(values.shape[1:])}, the participants' "
                f"images are {self.shape}; Themis.untrained({self.shape}) makes fitting ones"
            )
        generator = NoiseGenerator(values, self.settings.M)
        self.training = GeneratorTraining(generator, self.settings.learning_rate)

    def replace_arrays(self, arrays: ArrayRecord) -> None:
        """Continue with another μ and ρ; Adam's moments stay."""
        values, steps = self._training().pack()
        generator = stack(arrays, protocol.GENERATOR).numpy()
        self._set_state(np.concatenate([generator, values[2:]]), steps)

    def log_start(self) -> None:
        """Log σ before any training."""
        self._log_sigma()

    def arrays(self) -> ArrayRecord:
        """Return the current μ and ρ."""
        return protocol.generator_arrays(self._training().generator.pack())

    def generator(self, arrays: ArrayRecord | None = None) -> NoiseGenerator:
        """Return the noise generator of some arrays, by default the current one."""
        return self._training().generator if arrays is None else super().generator(arrays)

    def _training(self) -> GeneratorTraining:
        if self.training is None:
            raise RuntimeError("the training has not begun: it has no arrays yet")
        return self.training

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the generator with its optimiser's moments."""
        return {"values": torch.from_numpy(self._training().pack()[0])}

    def note(self) -> dict[str, Any]:
        """Return what else the next exchange depends on, as JSON."""
        return {
            "steps": self._training().pack()[1],
            "clip": [list(norms) for norms in self.clip.history],
            "clipped": self.clipped,
            "answered": sorted(self.answered),
            "losses": self.losses,
            # As the epoch began: whoever is missing after a restart is left out of it.
            "playing": self._present,
            "everyone": self._everyone,
        }

    def load_state(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Restore a checkpoint."""
        self._set_state(tensors["values"].numpy(), note["steps"])
        self.clip = Clip(self.settings.clip, note["clip"])
        self.clipped, self.answered = note["clipped"], set(note["answered"])
        self.losses = list(note["losses"])
        self._present, known = list(note["playing"]), list(note["everyone"])
        self._everyone = known + [name for name in self._members if name not in known]

    def count_exchanges(self) -> int:
        """Return how many exchanges the current epoch takes."""
        if not self._exchanges or self._exchanges[0].epoch != self.round:
            size = next(iter(self._members.values())).train
            batches = -(-size // self.settings.batch_size)
            self._exchanges = rounds.plan_epoch(
                self.settings, self.seed, self.case, self.round, self._present, batches
            )
            if not self._exchanges:
                raise TooFewParticipants(
                    f"{self.task}: nobody trains the noise in epoch {self.round}: see order, late "
                    "and bystanders"
                )
        return len(self._exchanges)

    def agree(self, cohort: Cohort, joined: dict[str, Member]) -> None:
        """Leave out participants whose images or public training set differ from most others'."""
        super().agree(cohort, joined)
        members.agree_on_training_set(cohort, joined)
        members.report_unknown_names(cohort, self.settings)

    def read_member(self, words: Mapping[str, Any]) -> Member:
        """Return what a participant says as it joins."""
        return members.PublicMember.read(words)

    def begin_round(self) -> None:
        """Start an epoch with the participants that are present."""
        super().begin_round()
        self._present, self._exchanges = list(self.cohort.nodes), []
        self.clipped = 0
        self.answered.clear()
        self.losses.clear()

    def is_over(self) -> bool:
        """Tell whether the stage was closed."""
        return self.is_closed()

    def configure_train(
        self,
        server_round: int,  # noqa: ARG002
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> Iterable[Message]:
        """Return the requests of the next exchange: gradients, or visits."""
        self.prepare(grid, arrays)
        self.count_exchanges()
        exchange = self._exchanges[self.done]
        # Some may have dropped out since the epoch began.
        names = [name for name in exchange.names if name in self.cohort.nodes]
        common: dict[str, Any] = {
            **config,
            "run": self.recorder.name,
            "seed": derive(self.seed, "schedule", self.case),
        }
        visitors: dict[str, int] = {}
        if self.settings.update != "joint":
            values, steps = self._training().pack()
            common |= {
                "steps": steps,
                "learning-rate": self.settings.learning_rate,
                "weight": self.settings.weight,
                protocol.MOMENTS: protocol.pack_moments(values),
            }
            everyone = self._everyone or list(self._members)
            visitors = {name: number for number, name in enumerate(everyone, 1)}
        requests = rounds.build_train_requests(
            self.settings, replace(exchange, names=names), common, arrays, visitors
        )
        return self.cohort.messages(self._kind, requests)

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen, clip and combine the replies, and move the generator."""
        joint = self.settings.update == "joint"
        moved = self._take_joint_step(replies) if joint else self._take_visits(replies)
        metrics = self.step_done()
        return (self.new_arrays() if moved else None), metrics

    def _take_joint_step(self, replies: Iterable[Message]) -> bool:
        """Take one step on Eq. (2) with everyone's gradients on the same noisy batches."""
        gradients = self._read_updates(replies, np.zeros((2, *self.shape), np.float32))
        self.cohort.require_min_replies(self.min_nodes, len(gradients), self.task)
        task_gradient = torch.from_numpy(self._combine(gradients))
        self._training().step(self.settings.weight * task_gradient)
        return True

    def _take_visits(self, replies: Iterable[Message]) -> bool:
        """Move the generator to the result of a visit, or the mean of several."""
        visit = self._exchanges[self.done]
        before, steps = self._training().pack()
        updates = self._read_updates(replies, before, visit)
        if self.settings.update == "averaged":
            self.cohort.require_min_replies(self.min_nodes, len(updates), self.task)
        if updates:
            self._set_state(before + self._combine(updates), steps + visit.count)
        return bool(updates)

    def _read_updates(
        self, replies: Iterable[Message], before: np.ndarray, visit: rounds.Exchange | None = None
    ) -> dict[str, np.ndarray]:
        """Return by name, screened and clipped, what replies add to ``before``."""

        def read(_: str, content: RecordDict) -> tuple[np.ndarray, float]:
            values = read_update(content, before.shape)
            if visit:
                check_reach(values, before, self.settings.learning_rate, visit.count)
            return values - before, protocol.number_of(content, "loss")

        found = self.read(replies, self._kind, read)
        self.losses += [loss for _, loss in found.values()]
        self.answered.update(found)
        updates, clipped = self.clip({name: update for name, (update, _) in found.items()})
        self.clipped += len(clipped)
        return updates

    def _combine(self, updates: dict[str, np.ndarray]) -> np.ndarray:
        return combine(self.settings.aggregate, list(updates.values()), self.settings.malicious)

    def _set_state(self, values: np.ndarray, steps: int) -> None:
        self.training = GeneratorTraining.unpack(
            torch.from_numpy(values), steps, self.settings.M, self.settings.learning_rate
        )

    def end_round(self) -> MetricRecord:
        """Log an epoch's σ, clipped replies and dropouts."""
        self.cohort.require_min_replies(self.min_nodes, len(self.answered), self.task)
        tags: dict[str, Any] = {"round": self.round + 1}
        sigma = self._log_sigma(**tags)
        self.log(self.stage, "clipped", self.clipped, **tags)
        for name, count in self.cohort.dropouts.items():
            self.log(self.stage, "dropouts", count, node=name, **tags)
        loss = float(np.mean(self.losses)) if self.losses else float("nan")
        return MetricRecord({"loss": loss, "mean-sigma": sigma, "clipped": self.clipped})

    def _log_sigma(self, **tags: Any) -> float:
        sigma = float(self._training().generator.sigma().detach().mean())
        self.log(self.stage, "mean_sigma", sigma, **tags)
        return sigma

    def is_evaluation_due(self, last: bool) -> bool:
        """Tell whether participants measure their accuracy after this epoch."""
        return last or self.round % self.settings.validate_every == 0

    def configure_evaluate(
        self,
        server_round: int,  # noqa: ARG002
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,  # noqa: ARG002
    ) -> Iterable[Message]:
        """Ask every participant for its accuracy on the noisy validation set (Figure 4)."""
        if self.done:  # Flower's own start asks after each exchange
            return []
        common = {
            **config,
            "run": self.recorder.name,
            "bound": self.settings.M,
            "seed": derive(self.seed, "validation", self.round),
        }
        requests = {
            name: rounds.build_request(
                {**common, "variant": rounds.variant_of(self.settings, name)}, arrays
            )
            for name in self.cohort.nodes
        }
        return self.cohort.messages(protocol.NOISY, requests)

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],
    ) -> MetricRecord | None:
        """Log each participant's accuracy; return the mean."""
        accuracies = self.read(
            replies, protocol.NOISY, lambda _, reply: protocol.number_of(reply, "accuracy", 0, 1)
        )
        for name, value in accuracies.items():
            self.log(self.stage, "validation_accuracy", value, node=name)
        if not accuracies:
            return None
        return MetricRecord({"accuracy": float(np.mean(list(accuracies.values())))})
