"""Split training: edges hold images, labels and the ends' graphs; the cloud its stage.

Each batch takes three exchanges, after which the cloud makes one step with all three stages. With a
single edge this is central training on its images to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.clients.shields.mixing import padded_count
from pudica.models.packing import unpack, validate_statistics
from pudica.models.randomness import seed_random_layers
from pudica.strategies.facemix.training import Learning


@dataclass(frozen=True)
class Batch:
    """Which batch the edges work on, and what share of it each has."""

    epoch: int
    number: int
    shares: dict[str, float]


class Together(Learning):
    """Edges and cloud train together. Nothing is validated: the cloud has no images."""

    def validate(self, done: int) -> None:
        """Do without."""

    def run_epoch(self, epoch: int) -> float:
        """Train on every edge's images once; edges with fewer batches end earlier."""
        size = self.training.batch_size
        sizes = {
            name: protocol.batch_sizes(member.train, size)
            for name, member in self.session.edges.items()
        }
        total = count = 0.0
        self.session.cohort.reset_failures()
        for number in range(max(map(len, sizes.values()))):
            there = {name: own[number] for name, own in sizes.items() if number < len(own)}
            loss, images = self._step(epoch, number, there)
            total, count = total + loss * images, count + images
        return total / count

    def _step(self, epoch: int, number: int, sizes: dict[str, int]) -> tuple[float, int]:
        self.model.train()
        self.optimizer.zero_grad()
        sent = self._mixtures(epoch, number, sizes)
        # Of those that still have images of this epoch.
        least = min(self.session.settings.min_edges, len(sizes))
        self.session.cohort.require_min_replies(least, len(sent), "training")
        images = sum(sizes[name] for name in sent)
        batch = Batch(epoch, number, {name: sizes[name] / images for name in sent})
        mixtures = torch.cat([*sent.values()]).requires_grad_()
        with seed_random_layers(self.drawing, self.session.seed, "main", epoch, number):
            outputs = self.session.compute.forward(
                self.model.main, self.session.compute.move_batch(mixtures)
            )
        counts = [len(rows) for rows in sent.values()]
        returned = dict(zip(sent, outputs.detach().cpu().split(counts), strict=True))
        losses, gradients = self._losses(batch, returned)
        self._need_all(batch, losses)
        outputs.backward(torch.cat([*gradients.values()]).to(outputs.device))
        assert mixtures.grad is not None
        back = dict(zip(sent, mixtures.grad.split(counts), strict=True))
        self._learn_ends(batch, returned, back)
        self.optimizer.step()
        return sum(losses[name] * batch.shares[name] for name in losses), images

    def _need_all(self, batch: Batch, answers: dict[str, float]) -> None:
        """Stop where an edge went away in the middle of a batch: half a step is none."""
        self.session.cohort.require_min_replies(len(batch.shares), len(answers), "training")

    # ---------------------------------------------------------------------- exchanges

    def _mixtures(self, epoch: int, number: int, sizes: dict[str, int]) -> dict[str, torch.Tensor]:
        content = self.session.request({"epoch": epoch, "number": number}, **self.session.ends())
        shield = self.model.shield

        def read(name: str, content: RecordDict) -> torch.Tensor:
            shape = (padded_count(sizes[name], shield.config), *shield.shape)
            return admitted(content, "mixtures", shape, self.session.settings.wire)

        return self.session.cohort.send_and_receive(
            protocol.MIXTURES, dict.fromkeys(sizes, content), read
        )

    def _request(self, name: str, batch: Batch, **arrays: Array) -> RecordDict:
        place = {"epoch": batch.epoch, "number": batch.number, "share": batch.shares[name]}
        # A process that has not made the mixtures has to make them again.
        ends = self.session.ends() if self.session.fresh else {}
        return self.session.request(place, **arrays, **ends)

    def _losses(
        self, batch: Batch, outputs: dict[str, torch.Tensor]
    ) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        requests = {
            name: self._request(name, batch, outputs=Array(rows.numpy()))
            for name, rows in outputs.items()
        }

        def read(name: str, content: RecordDict) -> tuple[float, torch.Tensor]:
            gradient = admitted(content, "gradient", tuple(outputs[name].shape))
            return protocol.number_of(content, "loss", 0), gradient

        replies = self.session.cohort.send_and_receive(protocol.OUTPUTS, requests, read)
        return (
            {name: loss for name, (loss, _) in replies.items()},
            {name: gradient for name, (_, gradient) in replies.items()},
        )

    def _learn_ends(
        self, batch: Batch, outputs: dict[str, torch.Tensor], back: dict[str, torch.Tensor]
    ) -> None:
        """Sum the edges' gradients of the ends, and average their buffers."""
        requests = {}
        for name, gradient in back.items():
            arrays = {"gradient": Array(gradient.cpu().numpy())}
            if self.session.fresh:
                arrays["outputs"] = Array(outputs[name].numpy())
            requests[name] = self._request(name, batch, **arrays)
        replies = self.session.cohort.send_and_receive(protocol.ENDS, requests, self._read_ends)
        self._need_all(batch, dict.fromkeys(replies, 0.0))
        ends = self.model.edge_stages
        gradients = [torch.zeros_like(p) for p in ends.parameters()]
        unpack(sum(weights for weights, _ in replies.values()), gradients)  # type: ignore[arg-type]
        for parameter, gradient in zip(ends.parameters(), gradients, strict=True):
            parameter.grad = gradient
        shared = sum(batch.shares[name] * buffers for name, (_, buffers) in replies.items())
        unpack(shared, list(ends.buffers()))  # type: ignore[arg-type]

    def _read_ends(self, _: str, content: RecordDict) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an edge's gradients of the ends, and their buffers, packed."""
        ends = self.model.edge_stages
        weights, buffers = (
            admitted(content, name, (sum(tensor.numel() for tensor in tensors),))
            for name, tensors in (("weights", ends.parameters()), ("buffers", ends.buffers()))
        )
        validate_statistics(buffers, ends.named_buffers())
        return weights, buffers


def admitted(
    content: RecordDict, name: str, shape: tuple[int, ...], wire: str = "float32"
) -> torch.Tensor:
    """Return what an edge sent as float32; errors as of :func:`.protocol.array_of`."""
    return torch.from_numpy(protocol.array_of(content, name, shape, wire)).float()
