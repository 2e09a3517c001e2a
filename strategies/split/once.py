"""Each example's activation is sent a single time; the cloud trains on what it has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from flwr.app import RecordDict

from clients import protocol
from models.files import load_tensors, save_tensors
from models.randomness import numpy_generator
from strategies.split.cloud import Chunk, Cloud, admitted, under
from strategies.split.evaluation import log_bytes, measure_whole
from strategies.split.fronts import Fronts
from strategies.split.means import fit_means
from strategies.split.session import Session


class Once:
    """The training of one case on activations that were released once.

    Parameters
    ----------
    session : Session
    cloud : Cloud
    fronts : Fronts
        Frozen ones.
    shape : tuple of int
        Of one example's activation.
    """

    def __init__(
        self, session: Session, cloud: Cloud, fronts: Fronts, shape: tuple[int, ...]
    ) -> None:
        self.session = session
        self.settings = session.settings
        self.recorder = session.recorder
        self.cloud = cloud
        self.fronts = fronts
        self.shape = shape
        self.costs = session.costs
        self.task = session.task("training")

    def train(self) -> None:
        """Collect the releases, then train on them, from the last checkpoint on."""
        if self.settings.fit == "none":
            self._hand_out()
        else:
            self.collect()
            smashed, labels = self._stored()
            if self.settings.fit == "means":
                fit_means(self.cloud.back, smashed, labels)
            else:
                self._train_on(smashed, labels)
        self._save(self.settings.epochs)
        self.recorder.finish(self.task, turn=0, fronts=self.fronts.note())

    def _hand_out(self) -> None:
        """Give the devices the front, and ask for nothing."""
        nothing = {"turn": 0, "epoch": 0, "step": 0, "count": 0, "keep": 1, "needed": -1}
        requests = {}
        for name in self.session.exchanges.nodes:
            config, arrays = self.fronts.goes_along(name)
            requests[name] = self.session.request({**nothing, **config}, **arrays)
        told = self.session.exchanges.ask(protocol.SMASH, requests, protocol.numbers_of)
        self.fronts.answered(told)

    # ---------------------------------------------------------------------- releases

    def collect(self) -> None:
        """Ask every device for all its examples, each at its own pace."""
        session = self.session
        left = [n for n in session.exchanges.nodes if not self.recorder.finished(self._told(n))]
        steps = dict.fromkeys(left, 0)
        found: dict[str, list[Chunk]] = {name: [] for name in left}
        self.costs.begin()

        def request(name: str) -> RecordDict:
            config, arrays = self.fronts.goes_along(name)
            own: dict[str, protocol.Scalar] = {
                "turn": 0,
                "epoch": 0,
                "step": steps[name],
                "count": len(self._sizes(name, steps[name])),
                "keep": int(name not in self.fronts.met),
                "needed": -1,
            }
            return session.request({**own, **config}, **arrays)

        def answer(name: str, content: RecordDict) -> RecordDict | None:
            self.fronts.answered([name])
            sizes = self._sizes(name, steps[name])
            try:
                chunk = admitted(content, sizes, self.shape, self.settings.wire, session.classes)
            except (KeyError, ValueError) as error:
                session.exchanges.reject(name, f"{protocol.SMASH}: {error}")
                return None
            found[name].append(chunk)
            self.costs.spent(name, chunk.seconds, len(sizes))
            steps[name] += len(sizes)
            self._show(steps)
            if steps[name] < session.batches(name):
                return request(name)
            self._store(name, found.pop(name))
            return None

        first = {name: request(name) for name in left}
        session.exchanges.converse(protocol.SMASH, first, lambda content: content, answer)
        session.need(sum(self.recorder.finished(self._told(n)) for n in session.devices))
        if left:
            log_bytes(session, self.shape, 1)
            self.costs.write(self.recorder.artefact(f"{session.case}/costs.csv"))

    def _sizes(self, name: str, step: int) -> list[int]:
        return self.session.sizes(name, step, self.settings.batches_per_message)

    def _show(self, steps: dict[str, int]) -> None:
        total = sum(self.session.devices[name].train for name in steps)
        sent = sum(sum(self.session.sizes(name, 0, step)) for name, step in steps.items())
        self.recorder.progress(f"releases ({self.session.case})", sent, total, "image")

    def _told(self, name: str) -> str:
        return f"released/{self.session.case}/{name}"

    def _file(self, name: str) -> Path:
        return self.recorder.artefact(f"{self.session.case}/released-{name}.safetensors")

    def _store(self, name: str, chunks: Sequence[Chunk]) -> None:
        """Keep a device's releases in a file of their own: they do not change any more."""
        tensors = {
            "smashed": torch.cat([chunk.smashed for chunk in chunks]),
            "labels": torch.cat([chunk.labels for chunk in chunks]),
        }
        save_tensors(self._file(name), tensors, {})
        self.recorder.finish(self._told(name))

    def _stored(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what all devices released, in their order."""
        names = [n for n in self.session.devices if self.recorder.finished(self._told(n))]
        kept = [found[0] for n in names if (found := load_tensors(self._file(n)))]
        smashed, labels = (torch.cat([k[key] for k in kept]) for key in ("smashed", "labels"))
        return smashed, labels

    # ---------------------------------------------------------------------- training

    def _train_on(self, smashed: torch.Tensor, labels: torch.Tensor) -> None:
        first = self._restore()
        for epoch in range(first, self.settings.epochs):
            loss = self._epoch(epoch, smashed, labels)
            self.session.log("training", "loss", loss, round=epoch + 1)
            every = self.settings.validate_every
            if every and (epoch + 1) % every == 0:
                shared = self.fronts.shared()
                measure_whole(self.session, self.cloud, shared, "validation", epoch + 1)
            if self.session.fresh or self.recorder.due():
                self._save(epoch + 1)
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

    def _save(self, epoch: int) -> None:
        tensors = {**self.cloud.tensors(), **self.fronts.tensors()}
        self.recorder.stand(
            self.task,
            {f"{self.task}/{key}": value for key, value in tensors.items()},
            epoch=epoch,
            turn=0,
            fronts=self.fronts.note(),
        )

    def _restore(self) -> int:
        position = self.recorder.position(self.task)
        if not position:
            return 0
        self.cloud.restore(under(f"{self.task}/", self.recorder.arrays))
        return int(position["epoch"])
