"""Each example's activation is sent a single time; the cloud trains on what it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flwr.app import MetricRecord, RecordDict

from pudica.clients import protocol
from pudica.models.files import load_tensors, save_tensors
from pudica.models.packing import select_prefix
from pudica.models.randomness import numpy_generator
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.split.cloud import Chunk
from pudica.strategies.split.evaluation import log_bytes
from pudica.strategies.split.means import fit_means

if TYPE_CHECKING:
    from pudica.strategies.split.strategy import SplitLearning

ATTEMPTS = 3
Released = dict[str, torch.Tensor]


class ReleaseOnce:
    """The training on activations that are released once, with frozen fronts.

    Parameters
    ----------
    strategy : SplitLearning
        Whose devices have joined.
    """

    def __init__(self, strategy: SplitLearning) -> None:
        self.strategy = strategy
        self.settings = strategy.settings
        self.recorder = strategy.recorder
        self.cohort = strategy.cohort
        self.devices = strategy.devices
        self.cloud = strategy.cloud
        self.fronts = strategy.fronts
        self.case = strategy.case

    def train(self, epochs: int) -> Iterator[None]:
        """Collect the releases, then train on them, from the last checkpoint on.

        Yields
        ------
        None
            After each epoch, or once where the back is found without any.
        """
        if self.settings.fit == "none":
            self.fronts.flush(0)
        else:
            self.collect()
            smashed, labels = self._stored()
            if self.settings.fit == "means":
                fit_means(self.cloud.back, smashed, labels)
            else:
                yield from self._train_on(smashed, labels, epochs)
        if self.settings.fit != "sgd":
            self.strategy.round = epochs
            yield
        self.strategy.save_checkpoint()

    # ---------------------------------------------------------------------- releases

    def collect(self) -> None:
        """Ask every device for all its examples; who fails is asked again, twice."""
        if self.recorder.is_finished(self._collected):
            return
        self.devices.costs.begin()
        for _ in range(ATTEMPTS):
            left = [n for n in self.cohort.nodes if not self.recorder.is_finished(self._task(n))]
            if left:
                self.cohort.reset_failures()
                Collection(self, left).collect()
        names = [
            name for name in self.devices.members if self.recorder.is_finished(self._task(name))
        ]
        self.cohort.require_min_replies(self.strategy.min_nodes, len(names), f"split ({self.case})")
        log_bytes(self.devices, self.strategy.activation, 1)
        if isinstance(self.recorder, Recorder):
            self.devices.costs.write(self.recorder.artefact(f"{self.case}/costs.csv"))
        self.recorder.finish(self._collected, names=names)

    @property
    def _collected(self) -> str:
        return f"released/{self.case}"

    def _task(self, name: str) -> str:
        return f"released/{self.case}/{name}"

    def _file(self, recorder: Recorder, name: str) -> Path:
        return recorder.artefact(f"{self.case}/released-{name}.safetensors")

    def store(self, name: str, chunks: Sequence[Chunk]) -> None:
        """Keep a device's releases in a file of their own: they do not change any more.

        Without a directory they lie with the recorder, which as well says that they are there.
        """
        tensors = {
            "smashed": torch.cat([chunk.smashed for chunk in chunks]),
            "labels": torch.cat([chunk.labels for chunk in chunks]),
        }
        if isinstance(self.recorder, Recorder):
            save_tensors(self._file(self.recorder, name), tensors, {})
        else:
            here = self._task(name)
            self.recorder.arrays |= {f"{here}/{key}": value for key, value in tensors.items()}
        self.recorder.finish(self._task(name))

    def _released(self, name: str) -> Released:
        if not isinstance(self.recorder, Recorder):
            return select_prefix(f"{self._task(name)}/", self.recorder.arrays)
        kept = load_tensors(self._file(self.recorder, name))
        if kept is None:
            raise RuntimeError(f"{self._file(self.recorder, name)} is gone: what {name} released")
        return kept[0]

    def _stored(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what all devices released, in their order."""
        kept = [self._released(n) for n in self.recorder.result(self._collected)["names"]]
        smashed, labels = (torch.cat([k[key] for k in kept]) for key in ("smashed", "labels"))
        return smashed, labels

    # ---------------------------------------------------------------------- training

    def _train_on(self, smashed: torch.Tensor, labels: torch.Tensor, epochs: int) -> Iterator[None]:
        strategy = self.strategy
        for epoch in range(strategy.round, epochs):
            loss = self._epoch(epoch, smashed, labels)
            self.devices.log(strategy.stage, "loss", loss, round=epoch + 1)
            strategy.round = epoch + 1
            strategy.result.train_metrics_clientapp[epoch + 1] = MetricRecord({"loss": loss})
            yield
            if self.devices.fresh or self.recorder.is_checkpoint_due():
                strategy.save_checkpoint()
            self.recorder.progress(f"training ({self.case})", epoch + 1, epochs, "epoch")

    def _epoch(self, epoch: int, smashed: torch.Tensor, labels: torch.Tensor) -> float:
        """Train one epoch in an order of its own; return the mean loss."""
        self.cloud.begin_epoch(epoch)
        order = numpy_generator(self.strategy.split_seed, "order", epoch).permutation(len(labels))
        size, total = self.settings.batch_size, 0.0
        for start in range(0, len(order), size):
            chosen = torch.from_numpy(order[start : start + size])
            x = smashed[chosen].to(self.strategy.compute.device)
            total += self.cloud.step(x, labels[chosen], epoch, start)
        return total / len(labels)


class Collection:
    """Asks some devices for all their examples, each at its own pace.

    Parameters
    ----------
    once : ReleaseOnce
    names : sequence of str
    """

    def __init__(self, once: ReleaseOnce, names: Sequence[str]) -> None:
        self.once = once
        self.devices = once.devices
        self.steps = dict.fromkeys(names, 0)
        self.found: dict[str, list[Chunk]] = {name: [] for name in names}

    def collect(self) -> None:
        """Ask until every device has sent everything, or failed."""
        first = {name: self._request(name) for name in self.steps}
        stream = self.devices.cohort.stream(protocol.SMASH, first, self._read)
        for name, chunk in stream:
            if request := self._answer(name, chunk):
                stream.send({name: request})

    def _sizes(self, name: str) -> list[int]:
        each = self.devices.settings.batches_per_message
        return self.devices.sizes(name, self.steps[name], each)

    def _request(self, name: str) -> RecordDict:
        config, arrays = self.once.fronts.extra_payload(name)
        count = len(self._sizes(name))
        last = self.steps[name] + count == self.devices.batches(name)
        own: dict[str, protocol.Scalar] = {
            "turn": self.steps[name],
            "epoch": 0,
            "step": self.steps[name],
            "count": count,
            # What the shield has learnt of the batches is needed when test images are sent.
            "keep": int(self.devices.fresh or name not in self.once.fronts.met or last),
            "needed": -1,
        }
        return self.devices.request({**own, **config}, **arrays)

    def _read(self, name: str, content: RecordDict) -> Chunk:
        return self.once.strategy.read_chunk(name, content, self._sizes(name))

    def _answer(self, name: str, chunk: Chunk) -> RecordDict | None:
        self.once.strategy.accept(name, chunk)
        self.once.fronts.note_answers([name])
        self.found[name].append(chunk)
        self.steps[name] += len(chunk.sizes)
        self._show()
        if self.steps[name] < self.devices.batches(name):
            return self._request(name)
        self.once.store(name, self.found.pop(name))
        return None

    def _show(self) -> None:
        sizes, members = self.devices.sizes, self.devices.members
        total = sum(members[name].train for name in self.steps)
        sent = sum(sum(sizes(name, 0, step)) for name, step in self.steps.items())
        recorder = self.devices.recorder
        recorder.progress(f"releases ({self.devices.case})", sent, total, "image")
