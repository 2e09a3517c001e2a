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
from pudica.strategies.core.session import CLOUD
from pudica.strategies.split.cloud import Chunk
from pudica.strategies.split.model import fit_means

if TYPE_CHECKING:
    from pudica.strategies.split.strategy import SplitLearning

ATTEMPTS = 3


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
        self.task = f"released/{strategy.case}"
        self._steps: dict[str, int] = {}

    def train(self, epochs: int) -> Iterator[None]:
        """Collect the releases, then train on them, from the last checkpoint on.

        Yields
        ------
        None
            After each epoch, or once where the back is found without any.
        """
        fit = self.settings.fit
        if fit == "none":
            self.strategy.fronts.flush(0)
        else:
            self.collect()
            smashed, labels = self._load()
            if fit == "means":
                fit_means(self.strategy.back, smashed, labels)
            else:
                yield from self._train_on(smashed, labels, epochs)
        if fit != "sgd":
            self.strategy.round = epochs
            yield
        self.strategy.save_checkpoint()

    # ---------------------------------------------------------------------- releases

    def collect(self) -> None:
        """Ask every device for all its examples; who fails is asked again, twice."""
        is_finished, strategy = self.recorder.is_finished, self.strategy
        if is_finished(self.task):
            return
        self.devices.costs.begin_epoch()
        for _ in range(ATTEMPTS):
            left = [name for name in self.cohort.nodes if not is_finished(f"{self.task}/{name}")]
            if left:
                self.cohort.reset_failures()
                self._ask(left)
        names = [name for name in self.devices.members if is_finished(f"{self.task}/{name}")]
        self.cohort.require_min_replies(strategy.min_nodes, len(names), f"split ({strategy.case})")
        self.devices.log_bytes(strategy.activation, 1)
        self.devices.costs.write(strategy.case)
        self.recorder.finish(self.task, names=names)

    def _ask(self, names: Sequence[str]) -> None:
        """Ask for all examples, each device at its own pace, until it has sent them, or failed."""
        self._steps = dict.fromkeys(names, 0)
        found: dict[str, list[Chunk]] = {name: [] for name in names}
        first = {name: self._request(name) for name in names}
        stream = self.cohort.stream(protocol.SMASH, first, self._read)
        for name, chunk in stream:
            self.strategy.accept(name, chunk)
            self.strategy.fronts.note_answers([name])
            found[name].append(chunk)
            self._steps[name] += len(chunk.sizes)
            self._show_progress()
            if self._sizes(name):
                stream.send({name: self._request(name)})
            else:
                self._store(name, found.pop(name))

    def _sizes(self, name: str) -> list[int]:
        """Return the sizes of the batches that a device is to send next."""
        return self.devices.sizes(name, self._steps[name], self.settings.batches_per_message)

    def _request(self, name: str) -> RecordDict:
        step = self._steps[name]
        return self.strategy.smash_request(name, step, 0, step, keep=self.devices.fresh)

    def _read(self, name: str, content: RecordDict) -> Chunk:
        return self.strategy.read_chunk(name, content, self._sizes(name))

    def _show_progress(self) -> None:
        sizes, members = self.devices.sizes, self.devices.members
        total = sum(members[name].train for name in self._steps)
        sent = sum(sum(sizes(name, 0, step)) for name, step in self._steps.items())
        self.recorder.progress(f"releases ({self.strategy.case})", sent, total, "image")

    def _file(self, recorder: Recorder, name: str) -> Path:
        return recorder.artefact(f"{self.strategy.case}/released-{name}.safetensors")

    def _store(self, name: str, chunks: Sequence[Chunk]) -> None:
        """Keep a device's releases in a file of their own: they do not change any more.

        Without a directory they lie with the recorder, which as well says that they are there.
        """
        task = f"{self.task}/{name}"
        tensors = {
            "smashed": torch.cat([chunk.smashed for chunk in chunks]),
            "labels": torch.cat([chunk.labels for chunk in chunks]),
        }
        if isinstance(self.recorder, Recorder):
            save_tensors(self._file(self.recorder, name), tensors, {})
        else:
            self.recorder.arrays |= {f"{task}/{key}": value for key, value in tensors.items()}
        self.recorder.finish(task)

    def _load(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what all devices released, in their order."""
        kept = [self._load_of(name) for name in self.recorder.result(self.task)["names"]]
        smashed, labels = (torch.cat([k[key] for k in kept]) for key in ("smashed", "labels"))
        return smashed, labels

    def _load_of(self, name: str) -> dict[str, torch.Tensor]:
        if not isinstance(self.recorder, Recorder):
            return select_prefix(f"{self.task}/{name}/", self.recorder.arrays)
        file = self._file(self.recorder, name)
        kept = load_tensors(file)
        if kept is None:
            raise RuntimeError(f"{file} is gone: what {name} released")
        return kept[0]

    # ---------------------------------------------------------------------- training

    def _train_on(self, smashed: torch.Tensor, labels: torch.Tensor, epochs: int) -> Iterator[None]:
        strategy = self.strategy
        for epoch in range(strategy.round, epochs):
            loss = self._train_epoch(epoch, smashed, labels)
            strategy.round = epoch + 1
            strategy.log(strategy.stage, "loss", loss, CLOUD)
            strategy.result.train_metrics_clientapp[epoch + 1] = MetricRecord({"loss": loss})
            yield
            if self.devices.fresh or self.recorder.is_checkpoint_due():
                strategy.save_checkpoint()
            self.recorder.progress(f"training ({strategy.case})", epoch + 1, epochs, "epoch")

    def _train_epoch(self, epoch: int, smashed: torch.Tensor, labels: torch.Tensor) -> float:
        """Train one epoch in an order of its own; return the mean loss."""
        cloud, size, total = self.strategy.cloud, self.settings.batch_size, 0.0
        cloud.begin_epoch(epoch)
        order = numpy_generator(self.strategy.split_seed, "order", epoch).permutation(len(labels))
        for start in range(0, len(order), size):
            chosen = torch.from_numpy(order[start : start + size])
            x = smashed[chosen].to(self.strategy.compute.device)
            total += cloud.step(x, labels[chosen], epoch, start)
        return total / len(labels)
