"""What a training across a cut consists of, and what of it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp import Grid
from torch import nn

from pudica.clients import protocol
from pudica.clients.assignments import SplitTerms, hash_name
from pudica.models.compute import Compute
from pudica.models.errors import RequestError
from pudica.models.optimizers import OptimizerConfig, Optimizing
from pudica.models.randomness import derive
from pudica.strategies.core.cases import MAIN
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.members import Member
from pudica.strategies.core.strategy import RecordedStrategy
from pudica.strategies.split.cloud import Chunk, Cloud
from pudica.strategies.split.config import EXPERIMENT_ONLY, SplitConfig
from pudica.strategies.split.devices import FORWARD, SKIPPED, Devices, EdgeMember, read_seconds
from pudica.strategies.split.evaluation import Part
from pudica.strategies.split.fronts import MODES, Fronts
from pudica.strategies.split.model import (
    BACK,
    FRONT,
    fingerprint,
    load_arrays_into,
    model_arrays,
    try_model,
)
from pudica.strategies.split.turns import EPOCH, Exchange, choose_present, list_exchanges


class SplitState(RecordedStrategy):
    """The parts of a :class:`.SplitLearning`: model, devices, optimisers, and their checkpoints."""

    system = "split"
    evaluated: Part = "test"
    """Which of the devices' images the whole model is measured on."""

    settings: SplitConfig
    devices: Devices
    fronts: Fronts
    cloud: Cloud
    _is_alone = False
    _has_just_joined = False

    def _configure(
        self,
        settings: SplitConfig,
        front: nn.Module,
        back: nn.Module,
        compute: Compute,
        optimizing: tuple[Optimizing, Optimizing],
    ) -> None:
        self.settings, self.front, self.back = settings, front, back
        self.compute, self.optimizers = compute, optimizing
        self.activation: tuple[int, ...] = ()
        self.loss, self.examples = 0.0, 0
        self.answered: set[str] = set()
        self.everyone: dict[str, int] = {}
        self._exchanges: list[Exchange] = []
        self._keep = False

    # ----------------------------------------------------------------- the state of training

    def settings_to_record(self) -> dict[str, Any]:
        """Return the settings as the ``split`` section of an experiment has them, and the model."""
        excluded = EXPERIMENT_ONLY | {"front", "optimizer", "front_optimizer"}
        chosen = self.settings.model_dump(mode="json", exclude=set(excluded))
        back, front = map(_describe_optimizer, self.optimizers)
        return {
            "fronts": self.settings.front,
            **chosen,
            "optimizer": back,
            "front_optimizer": front,
            "min_devices": self.min_nodes,
            "model": fingerprint(self.front, self.back),
        }

    def attach(self, cohort: Cohort, members: Mapping[str, Member], case: str = MAIN) -> None:
        """Train devices that have joined already; see :meth:`.RecordedStrategy.attach`."""
        super().attach(cohort, members, case)
        self._set_up()

    def join(self, grid: Grid, timeout: float = 3600) -> None:
        """Let devices join, unless they have; errors as of :meth:`.RecordedStrategy.join`."""
        if not self._has_joined(grid):
            super().join(grid, timeout)
            self._set_up()
            self._has_just_joined = True

    def join_request(self) -> dict[str, Any]:
        """Return the terms on which devices join, and to which turn those of a resumed run go."""
        front = self.optimizers[1]
        terms = SplitTerms(
            fronts=self.settings.front,
            batch_size=self.settings.batch_size,
            wire=self.settings.wire,
            seed=self.split_seed,
            optimizer=front if isinstance(front, OptimizerConfig) else None,
        )
        finished, before = self.recorder.note["finished"], f"released/{self.case}/"
        released = [name.removeprefix(before) for name in finished if name.startswith(before)]
        return {
            "terms": terms.model_dump_json(),
            "turn": int(self.recorder.position(self.task).get("turn", -1)),
            "released": " ".join(hash_name(self.recorder.name, name) for name in released),
        }

    def read_member(self, words: Mapping[str, Any]) -> EdgeMember:
        """Return what a device says as it joins."""
        return EdgeMember.read(words)

    def agree(self, cohort: Cohort, joined: dict[str, Member]) -> None:
        """Leave out devices that hold other images than most, or other classes than the model.

        The model is tried only on what most hold: what it costs is not for one device to say.
        """
        super().agree(cohort, joined)
        try:
            shape = next(iter(joined.values())).shape
            self.activation, classes = try_model(self.front, self.back, shape)
        except RequestError as error:
            reasons = dict.fromkeys(joined, str(error))
        else:
            known = {n: m.known_classes for n, m in joined.items() if isinstance(m, EdgeMember)}
            reasons = {
                name: f"its data have {count} classes, the back tells {classes} apart"
                for name, count in known.items()
                if count not in (0, classes)
            }
            joined |= {name: replace(member, classes=classes) for name, member in joined.items()}
        for name, reason in reasons.items():
            cohort.leave_out(name, reason)
            del joined[name]

    @property
    def split_seed(self) -> int:
        """Of everything that is drawn in this case."""
        return derive(self.seed, "split", self.case)

    def _set_up(self) -> None:
        """Make what trains the model, with fresh optimisers."""
        members: Any = self._members
        settings, (of_back, of_front) = self.settings, self.optimizers
        self.devices = Devices(self.cohort, members, self.case, settings)
        # Where nothing of the front can learn, no gradient goes back.
        learns = settings.front != "frozen" and any(True for _ in self.front.parameters())
        mode = MODES[settings.front if learns else "frozen"]
        self.fronts = mode(self.devices, self.front, of_front)
        self.cloud = Cloud(self.back, settings, self.compute, self.split_seed, learns, of_back)
        # Who there is and with how many batches: also those that are away when a run goes on.
        self.everyone = {name: len(self.devices.sizes(name)) for name in members}

    def initial_arrays(self) -> ArrayRecord:
        """Return the model as it was given."""
        return self.arrays()

    def arrays(self) -> ArrayRecord:
        """Return the model as it is now, as far as it is here."""
        return model_arrays(self.front, self.back)

    def new_arrays(self) -> ArrayRecord:
        """Return the arrays after an exchange; see :meth:`.RecordedStrategy.new_arrays`."""
        if self.done and self._is_alone and self._sent is not None:
            return self._sent
        return super().new_arrays()

    def load_arrays(self, arrays: ArrayRecord) -> None:
        """Begin with these arrays, and with fresh optimisers."""
        load_arrays_into(self.front, self.back, arrays)
        self._set_up()
        self._has_just_joined = False

    def replace_arrays(self, arrays: ArrayRecord) -> None:
        """Go on with other arrays; a front that devices keep to themselves stays as it is."""
        parts = (FRONT, BACK) if self.fronts.is_here else (BACK,)
        load_arrays_into(self.front, self.back, arrays, parts)
        self.fronts.replace()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return back, front and their optimisers."""
        return {**self.cloud.tensors(), **self.fronts.tensors()}

    def note(self) -> dict[str, Any]:
        """Return what else the next exchange depends on."""
        return {
            "turn": self.last_turn,
            "loss": self.loss,
            "examples": self.examples,
            "answered": sorted(self.answered),
            "everyone": self.everyone,
            "costs": self.devices.costs.note(),
            "fronts": self.fronts.note(),
        }

    def load_state(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.cloud.restore(tensors)
        self.fronts.restore(tensors, note["fronts"])
        self.devices.costs.restore(note["costs"])
        self.devices.needed = note["turn"]
        self.loss, self.examples = note["loss"], note["examples"]
        self.answered, self.everyone = set(note["answered"]), note["everyone"]
        if self._has_just_joined:
            self._forget_lost_fronts()

    def _forget_lost_fronts(self) -> None:
        """Take devices at the word they gave as they joined; since then they were sent a front."""
        self._has_just_joined = False
        without = {name for name, member in self.devices.members.items() if not member.begun}
        for name in sorted(self.fronts.forget(without)):
            self.recorder.event(f"{name} lost its front, and begins anew with the first")

    @property
    def last_turn(self) -> int:
        """The number of the last turn that was taken."""
        if not self.done:
            return self.round * EPOCH - 1
        return self._exchanges[self.done - 1].turn

    def save_checkpoint(self) -> None:
        """Write down from where a run that is killed goes on."""
        super().save_checkpoint()
        self.devices.needed = self.last_turn

    def is_checkpoint_due(self) -> bool:
        """Tell whether to take a checkpoint: after a turn that devices kept, too."""
        return self._keep and self._exchanges[self.done - 1].closes

    # ---------------------------------------------------------------------- the exchanges

    def count_exchanges(self) -> int:
        """Return how many exchanges the current epoch takes."""
        if not self._exchanges or self._exchanges[0].epoch != self.round:
            dropouts, everyone = self.settings.dropouts, self.everyone
            names = choose_present(list(everyone), dropouts, self.split_seed, self.round)
            found = list_exchanges(self.settings, self.fronts, everyone, names, self.round)
            self._exchanges = list(found)
        return len(self._exchanges)

    def smash_request(self, name: str, turn: int, epoch: int, step: int, keep: bool) -> RecordDict:
        """Return the request for a device's next batches of an epoch."""
        each = self.settings.batches_per_message
        # After its last turn of an epoch a device is not asked when others checkpoint.
        keep = keep or name not in self.fronts.with_front or step + each >= self.everyone[name]
        count = len(self.devices.sizes(name, step, each))
        return self.fronts.request(name, turn, epoch, step, count, keep)

    def read_chunk(self, name: str, content: RecordDict, sizes: list[int]) -> Chunk:
        """Return what a device sent of batches of these sizes, if they were asked for.

        Raises
        ------
        KeyError, ValueError
            Something is missing, of another shape or type, not finite, or a label of no class.
        """
        member, count = self.devices.members[name], sum(sizes)
        shape, wire = (count, *self.activation), self.settings.wire
        smashed = protocol.from_wire(content, "smashed", shape, wire, member.grid)
        labels = protocol.labels_of(content, "labels", count, member.classes, "int32")
        # Who promises something does not say how long it took: that depends on the images, too.
        seconds = read_seconds(content, *([] if member.grid else [FORWARD]))
        return Chunk(smashed, torch.from_numpy(labels).long(), sizes, seconds)

    def accept(self, name: str, chunk: Chunk) -> None:
        """Note what a device spent on what it sent."""
        if chunk.seconds.get(SKIPPED):
            self.recorder.event(f"{name} began anew since: a gradient was of no use to it")
        self.devices.costs.add(name, chunk.seconds, len(chunk.sizes))


def _describe_optimizer(optimizing: Optimizing) -> Any:
    if isinstance(optimizing, OptimizerConfig):
        return optimizing.model_dump(mode="json")
    name = getattr(optimizing, "__qualname__", repr(optimizing))
    return f"{getattr(optimizing, '__module__', '')}.{name}"
