"""Training across the cut: turn after turn, smashed data up, gradients down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.models.packing import select_prefix
from pudica.models.randomness import numpy_generator
from pudica.strategies.split.cloud import Chunk, Cloud
from pudica.strategies.split.evaluation import log_bytes, measure_whole
from pudica.strategies.split.fronts import Fronts
from pudica.strategies.split.session import Session
from pudica.strategies.split.stage import Stage

# Turns are numbered through the epochs; the odd number after one is for what settles it.
EPOCH = 2_000_000
# What was released once is not released again, so nobody goes back.
NEVER_BACK = 10**15


@dataclass(frozen=True)
class Turn:
    """One round of messages: who is asked for which batches of an epoch."""

    number: int
    epoch: int
    step: int
    count: int
    names: list[str]


class Training(Stage):
    """The training of one case, released every step; arguments as of :class:`Stage`."""

    def __init__(
        self, session: Session, cloud: Cloud, fronts: Fronts, shape: tuple[int, ...]
    ) -> None:
        super().__init__(session, cloud, fronts, shape)
        self.loss, self.examples = 0.0, 0
        self.answered: set[str] = set()
        # Who there is and with how many batches: also those that are away when a run goes on.
        self.everyone = {name: session.batches(name) for name in session.devices}

    def train(self) -> None:
        """Train all epochs, from the last checkpoint on."""
        first, done = self._restore()
        for epoch in range(first, self.settings.epochs):
            self.run_epoch(epoch, done if epoch == first else 0)
            self._end_epoch(epoch)
        last = self.settings.epochs * EPOCH - 1
        self.fronts.settle(last)
        self.costs.write(self.recorder.artefact(f"{self.session.case}/costs.csv"))
        self._save(self.settings.epochs, 0)
        self.recorder.finish(self.task, turn=last, fronts=self.fronts.note())

    def run_epoch(self, epoch: int, done: int = 0) -> None:
        """Take all turns of an epoch but the first ``done``."""
        if not done:
            self.cohort.reset_failures()
            self.cohort.dropouts.clear()
            self.costs.begin()
        turns = list(self.turns(epoch))
        for number, turn in enumerate(turns[done:], start=done + 1):
            keep = self.session.fresh or self.recorder.is_checkpoint_due()
            self.take(turn, keep)
            if keep:
                self._save(epoch, number)
            total = len(turns) * self.settings.epochs
            done_so_far = len(turns) * epoch + number
            self.recorder.progress(f"training ({self.session.case})", done_so_far, total, "turn")

    # ------------------------------------------------------------------ who does what

    def turns(self, epoch: int) -> Iterator[Turn]:
        """Yield the turns of an epoch: everybody at once, or one device after the other."""
        names, each = self.present(epoch), self.settings.batches_per_message
        groups = [[name] for name in names] if self.settings.front == "handoff" else [names]
        index = 0
        for group in groups:
            longest = max((self.everyone[name] for name in group), default=0)
            for step in range(0, longest, each):
                there = [name for name in group if step < self.everyone[name]]
                yield Turn(epoch * EPOCH + 2 * index, epoch, step, each, there)
                index += 1

    def present(self, epoch: int) -> list[str]:
        """Return the devices that take part in an epoch."""
        names = list(self.everyone)
        if not self.settings.dropouts:
            return names
        randomness = numpy_generator(self.session.seed, "dropouts", epoch)
        count = max(0, min(self.settings.dropouts, len(names) - 1))
        missing = set(randomness.choice(sorted(names), count, replace=False))
        return [name for name in names if name not in missing]

    # ----------------------------------------------------------------------- one turn

    def take(self, turn: Turn, keep: bool = False) -> None:
        """Ask for batches, let the back learn from them, bring the gradients to the fronts."""
        chunks = self._ask(turn, keep)
        if not chunks:
            return
        self.answered.update(chunks)
        loss, gradients = self.cloud.learn(chunks, turn.epoch, turn.number)
        self.loss += loss
        self.examples += sum(len(chunk.labels) for chunk in chunks.values())
        self.fronts.learn(gradients, turn.epoch, turn.number)

    def _ask(self, turn: Turn, keep: bool) -> dict[str, Chunk]:
        here = [name for name in turn.names if name in self.cohort.nodes]
        requests = {name: self._request(name, turn, keep) for name in here}

        def read(name: str, content: RecordDict) -> Chunk:
            return self.admitted(content, self.session.sizes(name, turn.step, turn.count))

        chunks = self.cohort.send_and_receive(protocol.SMASH, requests, read)
        self.fronts.answered(chunks)
        for name, chunk in chunks.items():
            self.accept(name, chunk)
        return chunks

    def _request(self, name: str, turn: Turn, keep: bool) -> RecordDict:
        config, arrays = self.fronts.goes_along(name)
        last = turn.step + turn.count >= self.everyone[name]
        own: dict[str, protocol.Scalar] = {
            "turn": turn.number,
            "epoch": turn.epoch,
            "step": turn.step,
            "count": len(self.session.sizes(name, turn.step, turn.count)),
            # After its last turn of an epoch a device is not asked when others checkpoint.
            "keep": int(keep or name not in self.fronts.met or last),
            "needed": self.session.needed,
        }
        return self.session.request({**own, **config}, **arrays)

    # ------------------------------------------------------------------ around an epoch

    def _end_epoch(self, epoch: int) -> None:
        done = epoch + 1
        self.session.require_min_replies(len(self.answered))
        self.session.log("training", "loss", self.loss / self.examples, round=done)
        for name, count in self.cohort.dropouts.items():
            self.session.log("training", "dropouts", count, node=name, round=done)
        log_bytes(self.session, self.shape, done)
        self.loss, self.examples = 0.0, 0
        self.answered.clear()
        if self.settings.validates(done):
            self.fronts.settle(epoch * EPOCH + EPOCH - 1)
            measure_whole(self.session, self.cloud, self.fronts.shared(), "validation", done)

    def _save(self, epoch: int, done: int) -> None:
        """Take a checkpoint after so many turns of an epoch."""
        self.stand(
            epoch=epoch,
            done=done,
            turn=self._turn(epoch, done),
            loss=self.loss,
            examples=self.examples,
            answered=sorted(self.answered),
            everyone=self.everyone,
            dropouts=self.cohort.dropouts,
            costs=self.costs.note(),
        )
        self.session.needed = self._turn(epoch, done)

    def _turn(self, epoch: int, done: int) -> int:
        """Return the number of the last turn that was taken."""
        return epoch * EPOCH + 2 * (done - 1) if done else epoch * EPOCH - 1

    def _restore(self) -> tuple[int, int]:
        """Go back to the last checkpoint; return its epoch and the turns done in it."""
        position: dict[str, Any] = self.recorder.position(self.task)
        if not position:
            return 0, 0
        tensors = select_prefix(f"{self.task}/", self.recorder.arrays)
        self.cloud.restore(tensors)
        self.fronts.restore(tensors, position["fronts"])
        self.costs.restore(position["costs"])
        self.cohort.dropouts.update(position["dropouts"])
        self.loss, self.examples = position["loss"], position["examples"]
        self.answered, self.everyone = set(position["answered"]), position["everyone"]
        return int(position["epoch"]), int(position["done"])


def start_turn(session: Session, name: str) -> int:
    """Return the turn to which a device of a resumed run goes back, -1 if it begins."""
    recorder, task = session.recorder, session.task("training")
    if session.settings.release == "once":
        done = recorder.is_finished(task) or recorder.is_finished(f"released/{session.case}/{name}")
        return NEVER_BACK if done else -1
    if recorder.is_finished(task):
        return int(recorder.result(task)["turn"])
    return int(recorder.position(task).get("turn", -1))
