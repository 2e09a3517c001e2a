"""Each example's activation is sent a single time; the cloud trains on what it has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.models.files import load_tensors, save_tensors
from pudica.models.packing import select_prefix
from pudica.models.randomness import numpy_generator
from pudica.strategies.split.cloud import Chunk
from pudica.strategies.split.evaluation import log_bytes, measure_whole
from pudica.strategies.split.means import fit_means
from pudica.strategies.split.stage import Stage

ATTEMPTS = 3


class Once(Stage):
    """The training of one case on activations that were released once, with frozen fronts."""

    def train(self) -> None:
        """Collect the releases, then train on them, from the last checkpoint on."""
        if self.settings.fit == "none":
            self.fronts.settle(0)
        else:
            self.collect()
            smashed, labels = self._stored()
            if self.settings.fit == "means":
                fit_means(self.cloud.back, smashed, labels)
            else:
                self._train_on(smashed, labels)
        self.stand(epoch=self.settings.epochs)
        self.recorder.finish(self.task, fronts=self.fronts.note())

    # ---------------------------------------------------------------------- releases

    def collect(self) -> None:
        """Ask every device for all its examples; who fails is asked again, twice."""
        if self.recorder.is_finished(self._collected):
            return
        self.costs.begin()
        for _ in range(ATTEMPTS):
            left = [
                n for n in self.session.cohort.nodes if not self.recorder.is_finished(self._told(n))
            ]
            if left:
                self.session.cohort.reset_failures()
                Collection(self, left).collect()
        names = [
            name for name in self.session.devices if self.recorder.is_finished(self._told(name))
        ]
        self.session.require_min_replies(len(names))
        log_bytes(self.session, self.shape, 1)
        self.costs.write(self.recorder.artefact(f"{self.session.case}/costs.csv"))
        self.recorder.finish(self._collected, names=names)

    @property
    def _collected(self) -> str:
        return f"released/{self.session.case}"

    def _told(self, name: str) -> str:
        return f"released/{self.session.case}/{name}"

    def _file(self, name: str) -> Path:
        return self.recorder.artefact(f"{self.session.case}/released-{name}.safetensors")

    def store(self, name: str, chunks: Sequence[Chunk]) -> None:
        """Keep a device's releases in a file of their own: they do not change any more."""
        tensors = {
            "smashed": torch.cat([chunk.smashed for chunk in chunks]),
            "labels": torch.cat([chunk.labels for chunk in chunks]),
        }
        save_tensors(self._file(name), tensors, {})
        self.recorder.finish(self._told(name))

    def _stored(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what all devices released, in their order."""
        names = self.recorder.result(self._collected)["names"]
        kept = [found[0] for n in names if (found := load_tensors(self._file(n)))]
        smashed, labels = (torch.cat([k[key] for k in kept]) for key in ("smashed", "labels"))
        return smashed, labels

    # ---------------------------------------------------------------------- training

    def _train_on(self, smashed: torch.Tensor, labels: torch.Tensor) -> None:
        first = self._restore()
        for epoch in range(first, self.settings.epochs):
            loss = self._epoch(epoch, smashed, labels)
            self.session.log("training", "loss", loss, round=epoch + 1)
            if self.settings.validates(epoch + 1):
                shared = self.fronts.shared()
                measure_whole(self.session, self.cloud, shared, "validation", epoch + 1)
            if self.session.fresh or self.recorder.is_checkpoint_due():
                self.stand(epoch=epoch + 1)
            stage = f"training ({self.session.case})"
            self.recorder.progress(stage, epoch + 1, self.settings.epochs, "epoch")

    def _epoch(self, epoch: int, smashed: torch.Tensor, labels: torch.Tensor) -> float:
        """Train one epoch in an order of its own; return the mean loss."""
        self.cloud.rate(epoch)
        order = numpy_generator(self.session.seed, "order", epoch).permutation(len(labels))
        size, total = self.settings.batch_size, 0.0
        for start in range(0, len(order), size):
            chosen = torch.from_numpy(order[start : start + size])
            x = smashed[chosen].to(self.session.compute.device)
            total += self.cloud.step(x, labels[chosen], epoch, start)
        return total / len(labels)

    def _restore(self) -> int:
        position = self.recorder.position(self.task)
        if not position:
            return 0
        self.cloud.restore(select_prefix(f"{self.task}/", self.recorder.arrays))
        return int(position["epoch"])


class Collection:
    """Asks some devices for all their examples, each at its own pace.

    Parameters
    ----------
    once : Once
    names : sequence of str
    """

    def __init__(self, once: Once, names: Sequence[str]) -> None:
        self.once = once
        self.session = once.session
        self.steps = dict.fromkeys(names, 0)
        self.found: dict[str, list[Chunk]] = {name: [] for name in names}

    def collect(self) -> None:
        """Ask until every device has sent everything, or failed."""
        first = {name: self._request(name) for name in self.steps}
        stream = self.session.cohort.stream(protocol.SMASH, first, self._read)
        for name, chunk in stream:
            if request := self._answer(name, chunk):
                stream.send({name: request})

    def _sizes(self, name: str) -> list[int]:
        each = self.session.settings.batches_per_message
        return self.session.sizes(name, self.steps[name], each)

    def _request(self, name: str) -> RecordDict:
        config, arrays = self.once.fronts.goes_along(name)
        count = len(self._sizes(name))
        last = self.steps[name] + count == self.session.batches(name)
        own: dict[str, protocol.Scalar] = {
            "turn": self.steps[name],
            "epoch": 0,
            "step": self.steps[name],
            "count": count,
            # What the shield has learnt of the batches is needed when test images are sent.
            "keep": int(self.session.fresh or name not in self.once.fronts.met or last),
            "needed": -1,
        }
        return self.session.request({**own, **config}, **arrays)

    def _read(self, name: str, content: RecordDict) -> Chunk:
        return self.once.admitted(content, self._sizes(name))

    def _answer(self, name: str, chunk: Chunk) -> RecordDict | None:
        self.once.accept(name, chunk)
        self.once.fronts.answered([name])
        self.found[name].append(chunk)
        self.steps[name] += len(chunk.sizes)
        self._show()
        if self.steps[name] < self.session.batches(name):
            return self._request(name)
        self.once.store(name, self.found.pop(name))
        return None

    def _show(self) -> None:
        sizes, devices = self.session.sizes, self.session.devices
        total = sum(devices[name].train for name in self.steps)
        sent = sum(sum(sizes(name, 0, step)) for name, step in self.steps.items())
        recorder = self.session.recorder
        recorder.progress(f"releases ({self.session.case})", sent, total, "image")
