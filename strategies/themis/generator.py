"""Collaborative training: organiser and participants train the noise generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.models.generator import GeneratorTraining, NoiseGenerator
from pudica.models.randomness import derive, numpy_generator
from pudica.strategies.themis.config import ThemisConfig
from pudica.strategies.themis.organiser import Organiser
from pudica.strategies.themis.screening import Clip, admitted, combined, reachable


@dataclass(frozen=True)
class Turn:
    """One exchange: who is asked about which batches."""

    epoch: int
    step: int
    count: int
    names: list[str]


class GeneratorStage:
    """The training of one case's generator.

    Parameters
    ----------
    organiser : Organiser
    case : str
    settings : ThemisConfig
        Of this case.
    over : callable
        Tells whether to stop before the last epoch, with what is trained by then.
    """

    def __init__(
        self,
        organiser: Organiser,
        case: str,
        settings: ThemisConfig,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.over = over
        self.organiser = organiser
        self.case = case
        self.settings = settings
        self.seed = organiser.experiment.seed
        self.cohort = organiser.cohort
        self.recorder = organiser.recorder
        self.task = f"generator/{case}"
        self.batches = -(-len(organiser.data.train) // settings.batch_size)
        self.training = GeneratorTraining(organiser.untrained(settings.M), settings.learning_rate)
        self.clip = Clip(settings.clip)
        self.clipped = 0
        self.answered: set[str] = set()
        self._no_gradient = np.zeros((2, *organiser.data.shape), np.float32)

    def train(self) -> NoiseGenerator:
        """Train all epochs, from the last checkpoint on, and return the generator."""
        first, done = self._restore()
        for epoch in range(first, self.settings.epochs):
            if self.over():
                self.recorder.event(f"the noise is trained for {epoch} epochs, not more")
                break
            self.run_epoch(epoch, done if epoch == first else 0)
            self._end_epoch(epoch)
            self._stand(epoch + 1, 0)
        return self.training.generator

    def run_epoch(self, epoch: int, done: int = 0) -> None:
        """Take all turns of an epoch but the first ``done``."""
        turns = list(self._turns(epoch))
        if not done:
            self._begin_epoch()
        stage, unit = f"noise generator ({self.case})", "step"
        if self.settings.update == "sequential":
            unit = "visit"
        for number, turn in enumerate(turns[done:], start=done + 1):
            self._take(turn)
            if self.over():
                break
            if self.recorder.is_checkpoint_due():
                self._stand(epoch, number)
            total = len(turns) * self.settings.epochs
            self.recorder.progress(stage, len(turns) * epoch + number, total, unit)

    # ------------------------------------------------------------------ who does what

    def present(self, epoch: int) -> list[str]:
        """Return who takes part in an epoch, in the order of their turns."""
        settings = self.settings
        names = [
            name
            for name in self._ordered(epoch)
            if name not in settings.bystanders and settings.late.get(name, 0) <= epoch
        ]
        missing: set[str] = set()
        if settings.dropouts:
            randomness = numpy_generator(self.seed, "dropouts", self.case, epoch)
            count = max(0, min(settings.dropouts, len(names) - 1))
            missing = set(randomness.choice(sorted(names), count, replace=False))
        return [name for name in names if name not in missing]

    def _ordered(self, epoch: int) -> list[str]:
        names, order = list(self.cohort.nodes), self.settings.order
        if isinstance(order, list):
            return [name for name in order if name in names]
        if order == "random":
            randomness = numpy_generator(self.seed, "order", self.case, epoch)
            return [names[i] for i in randomness.permutation(len(names))]
        if order == "listed":
            return names
        return sorted(names, key=str.casefold, reverse=order == "reverse")

    def _turns(self, epoch: int) -> Iterator[Turn]:
        names, visit = self.present(epoch), self.settings.steps_per_visit
        for step in range(0, self.batches, visit):
            count = min(visit, self.batches - step)
            if self.settings.update == "sequential":
                yield from (Turn(epoch, step, count, [name]) for name in names)
            else:
                yield Turn(epoch, step, count, names)

    # -------------------------------------------------------------------- one exchange

    def _take(self, turn: Turn) -> None:
        """Ask, screen, clip, combine, and move the generator."""
        if self.settings.update == "joint":
            self._joint_step(turn)
        else:
            self._adopt_visits(turn)

    def _joint_step(self, turn: Turn) -> None:
        """Take one step on Eq. (2) with everyone's gradients on the same noisy batches."""
        gradients = self._accepted(protocol.GRADIENT, self._gradients(turn), self._no_gradient)
        self.cohort.require_min_replies(self.settings.min_participants, len(gradients), self.task)
        task_gradient = self._combined(gradients)
        self.training.step(self.settings.weight * torch.from_numpy(task_gradient))

    def _adopt_visits(self, turn: Turn) -> None:
        """Move the generator to where its visit, or the mean of several, has brought it."""
        before, steps = self.training.pack()
        updates = self._accepted(protocol.VISIT, self._visits(turn, before, steps), before, turn)
        if self.settings.update == "averaged":
            self.cohort.require_min_replies(self.settings.min_participants, len(updates), self.task)
        if updates:
            self._adopt(before + self._combined(updates), steps + turn.count)

    def _accepted(
        self,
        kind: str,
        requests: dict[str, RecordDict],
        before: np.ndarray,
        visit: Turn | None = None,
    ) -> dict[str, np.ndarray]:
        """Return what each participant adds to ``before``, as far as it passes the screening."""

        def read(_: str, content: RecordDict) -> np.ndarray:
            values = admitted(content, before.shape)
            if visit:
                reachable(values, before, self.settings.learning_rate, visit.count)
            update: np.ndarray = values - before
            return update

        updates = self.cohort.send_and_receive(kind, requests, read)
        self.answered.update(updates)
        updates, clipped = self.clip(updates)
        self.clipped += len(clipped)
        return updates

    def _combined(self, updates: dict[str, np.ndarray]) -> np.ndarray:
        return combined(self.settings.aggregate, list(updates.values()), self.settings.malicious)

    def _adopt(self, values: np.ndarray, steps: int) -> None:
        self.training = GeneratorTraining.unpack(
            torch.from_numpy(values), steps, self.settings.M, self.settings.learning_rate
        )

    def _common(self, turn: Turn, name: str) -> dict[str, protocol.Scalar]:
        settings = self.settings
        config: dict[str, protocol.Scalar] = {
            "run": self.organiser.run,
            "variant": "cheating" if name in settings.cheaters else "honest",
            "bound": settings.M,
            "seed": derive(self.seed, "schedule", self.case),
            "epoch": turn.epoch,
            "step": turn.step,
            "count": turn.count,
            "batch": settings.batch_size,
            "noise": settings.noise,
            "visitor": 0,
        }
        if name in settings.hostile:
            config["attack"] = settings.hostile[name]
        return config

    def _gradients(self, turn: Turn) -> dict[str, RecordDict]:
        """Return the requests; participants of whom the same is asked share one."""
        generator = Array(self.training.generator.pack())
        shared: dict[tuple[bool, str | None], RecordDict] = {}
        requests = {}
        for name in turn.names:
            kind = (name in self.settings.cheaters, self.settings.hostile.get(name))
            if kind not in shared:
                shared[kind] = protocol.request(self._common(turn, name), generator=generator)
            requests[name] = shared[kind]
        return requests

    def _visits(self, turn: Turn, values: np.ndarray, steps: int) -> dict[str, RecordDict]:
        state, everyone = Array(values), self.organiser.experiment.names()
        own: dict[str, protocol.Scalar] = {
            "steps": steps,
            "learning-rate": self.settings.learning_rate,
            "weight": self.settings.weight,
        }
        return {
            name: protocol.request(
                {**self._common(turn, name), **own, "visitor": 1 + everyone.index(name)},
                state=state,
            )
            for name in turn.names
        }

    # ----------------------------------------------------------------- around an epoch

    def _begin_epoch(self) -> None:
        self.cohort.reset_failures()
        self.cohort.dropouts.clear()
        self.clipped = 0
        self.answered.clear()

    def _end_epoch(self, epoch: int) -> None:
        self.cohort.require_min_replies(
            self.settings.min_participants, len(self.answered), self.task
        )
        log: dict[str, Any] = {"round": epoch + 1, "case": self.case}
        self._log_sigma(epoch + 1)
        self.recorder.log("generator", "clipped", self.clipped, **log)
        for name, count in self.cohort.dropouts.items():
            self.recorder.log("generator", "dropouts", count, node=name, **log)
        last = epoch + 1 == self.settings.epochs or self.over()
        if (epoch + 1) % self.settings.validate_every == 0 or last:
            self.validate(epoch + 1)

    def _log_sigma(self, epoch: int) -> None:
        sigma = float(self.training.generator.sigma().detach().mean())
        self.recorder.log("generator", "mean_sigma", sigma, round=epoch, case=self.case)

    def validate(self, epoch: int) -> None:
        """Measure every participant on the noisy public validation set (Figure 4)."""
        generator = Array(self.training.generator.pack())
        config: dict[str, protocol.Scalar] = {
            "run": self.organiser.run,
            "bound": self.settings.M,
            "seed": derive(self.seed, "validation", epoch),
        }
        requests = {
            name: protocol.request(
                {**config, "variant": "cheating" if name in self.settings.cheaters else "honest"},
                generator=generator,
            )
            for name in self.cohort.nodes
        }
        replies = self.cohort.send_and_receive(protocol.NOISY, requests, _accuracy)
        for name, value in replies.items():
            self.recorder.log(
                "generator", "validation_accuracy", value, node=name, round=epoch, case=self.case
            )

    def _stand(self, epoch: int, done: int) -> None:
        values, steps = self.training.pack()
        self.recorder.save_checkpoint(
            self.task,
            {self.task: torch.from_numpy(values)},
            epoch=epoch,
            done=done,
            steps=steps,
            clip=[list(norms) for norms in self.clip.history],
            clipped=self.clipped,
            answered=sorted(self.answered),
            dropouts=self.cohort.dropouts,
        )

    def _restore(self) -> tuple[int, int]:
        """Go back to the last checkpoint; return its epoch and the turns done in it."""
        self.cohort.dropouts.clear()
        position = self.recorder.position(self.task)
        if not position:
            if self.settings.epochs:
                self._log_sigma(0)
                self.validate(0)
            return 0, 0
        self._adopt(self.recorder.arrays[self.task].numpy(), position["steps"])
        self.clip = Clip(self.settings.clip, position["clip"])
        self.clipped, self.answered = position["clipped"], set(position["answered"])
        self.cohort.dropouts.update(position["dropouts"])
        return int(position["epoch"]), int(position["done"])


def _accuracy(_: str, content: RecordDict) -> float:
    return protocol.number_of(content, "accuracy", 0, 1)
