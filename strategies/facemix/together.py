"""Split training: edges hold images, labels and the ends' graphs; the cloud its stage.

Each batch takes three exchanges, after which the cloud makes one step with all three stages. With a
single edge this is central training on its images to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from flwr.app import Array, Message, RecordDict

from pudica.clients import protocol
from pudica.clients.shields.mixing import padded_count
from pudica.models.errors import RequestError
from pudica.models.packing import unpack, validate_statistics
from pudica.models.randomness import seed_random_layers
from pudica.strategies.facemix.training import Trainer

KINDS = (protocol.MIXTURES, protocol.OUTPUTS, protocol.ENDS)
"""The exchanges of a batch, in their order."""


@dataclass
class Batch:
    """One batch, between its exchanges.

    Attributes
    ----------
    epoch, number : int
    shares : dict of str to float
        Of each edge in it.
    images : int
    mixtures, outputs : Tensor
        What came, and what the cloud's stage made of it, with its graph.
    returned, back : dict of str to Tensor
        What goes to each edge: outputs, and gradients on its mixtures.
    loss : float
    """

    epoch: int
    number: int
    shares: dict[str, float]
    images: int
    mixtures: torch.Tensor = field(repr=False)
    outputs: torch.Tensor = field(repr=False)
    returned: dict[str, torch.Tensor] = field(repr=False)
    back: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    loss: float = 0.0


class SplitTrainer(Trainer):
    """Edges and cloud train together. Nothing is validated: the cloud has no images."""

    per_batch = len(KINDS)
    batch: Batch

    def count_exchanges(self) -> int:
        """Return three for each batch of the edge that has most."""
        most = max(map(len, self._sizes.values()), default=0)
        if not most:
            raise RequestError(
                "no edge has training images: InferenceEdge(..., train=…), or give the owner's to "
                "FaceMix(..., train=…)"
            )
        return len(KINDS) * most

    @cached_property
    def _sizes(self) -> dict[str, list[int]]:
        """Return the sizes of each edge's batches; those with fewer end earlier."""
        size = self.strategy.settings.training.batch_size
        return {n: protocol.batch_sizes(m.train, size) for n, m in self.strategy.edges.items()}

    @property
    def _place(self) -> tuple[int, int]:
        """The number of the batch, and which of its exchanges is the next."""
        return divmod(self.strategy.done, len(KINDS))

    def requests(self) -> tuple[str, Mapping[str, RecordDict]]:
        """Return kind and requests of the next exchange."""
        number, phase = self._place
        requests = (self._ask_mixtures, self._send_outputs, self._send_gradients)[phase]
        return KINDS[phase], requests(number)

    def take(self, replies: Iterable[Message]) -> None:
        """Take mixtures, losses or gradients; with these the batch makes a step."""
        number, phase = self._place
        (self._take_mixtures, self._take_losses, self._take_gradients)[phase](number, replies)

    def _there(self, number: int) -> dict[str, int]:
        """Return the size of a batch on each edge that still has images of this epoch."""
        return {name: own[number] for name, own in self._sizes.items() if number < len(own)}

    # ------------------------------------------------------------------------ mixtures

    def _ask_mixtures(self, number: int) -> dict[str, RecordDict]:
        strategy = self.strategy
        place = {"epoch": strategy.round, "number": number}
        content = strategy.request(place, **strategy.end_arrays())
        return {n: content for n in self._there(number) if n in strategy.cohort.nodes}

    def _take_mixtures(self, number: int, replies: Iterable[Message]) -> None:
        strategy, sizes = self.strategy, self._there(number)
        strategy.model.train()
        strategy.optimizer.zero_grad()
        shield = strategy.model.shield

        def read(name: str, content: RecordDict) -> torch.Tensor:
            shape = (padded_count(sizes[name], shield.config), *shield.shape)
            return protocol.from_wire(content, "mixtures", shape, strategy.settings.wire)

        sent = strategy.read(replies, protocol.MIXTURES, read)
        least = min(strategy.min_nodes, len(sizes))
        strategy.cohort.require_min_replies(least, len(sent), "training")
        images = sum(sizes[name] for name in sent)
        mixtures = torch.cat([*sent.values()]).requires_grad_()
        place = strategy.round, number
        with seed_random_layers(self.drawing, strategy.seed, "main", *place):
            outputs = strategy.compute.forward(
                strategy.model.main, strategy.compute.move_batch(mixtures)
            )
        counts = [len(rows) for rows in sent.values()]
        returned = dict(zip(sent, outputs.detach().cpu().split(counts), strict=True))
        shares = {name: sizes[name] / images for name in sent}
        self.batch = Batch(*place, shares, images, mixtures, outputs, returned)

    # -------------------------------------------------------------------------- losses

    def _send_outputs(self, _: int) -> dict[str, RecordDict]:
        again = self._ends_again()
        return {
            name: self._request(name, outputs=Array(rows.numpy()), **again)
            for name, rows in self.batch.returned.items()
        }

    def _take_losses(self, _: int, replies: Iterable[Message]) -> None:
        batch = self.batch

        def read(name: str, content: RecordDict) -> tuple[float, torch.Tensor]:
            shape = tuple(batch.returned[name].shape)
            gradient = protocol.from_wire(content, "gradient", shape, "float32")
            return protocol.number_of(content, "loss", 0), gradient

        found = self.strategy.read(replies, protocol.OUTPUTS, read)
        self._need_all(len(found))
        gradients = [gradient for _, gradient in found.values()]
        batch.outputs.backward(torch.cat(gradients).to(batch.outputs.device))
        assert batch.mixtures.grad is not None
        counts = [len(gradient) for gradient in gradients]
        batch.back = dict(zip(found, batch.mixtures.grad.split(counts), strict=True))
        batch.loss = sum(loss * batch.shares[name] for name, (loss, _) in found.items())

    def _need_all(self, answered: int) -> None:
        """Stop where an edge went away in the middle of a batch: half a step is none."""
        self.strategy.cohort.require_min_replies(len(self.batch.shares), answered, "training")

    # ---------------------------------------------------------------------------- ends

    def _send_gradients(self, _: int) -> dict[str, RecordDict]:
        requests, again = {}, self._ends_again()
        for name, gradient in self.batch.back.items():
            arrays = {**again, "gradient": Array(gradient.cpu().numpy())}
            if self.strategy.fresh:
                arrays["outputs"] = Array(self.batch.returned[name].numpy())
            requests[name] = self._request(name, **arrays)
        return requests

    def _take_gradients(self, _: int, replies: Iterable[Message]) -> None:
        """Sum the edges' gradients of the ends, average their buffers, and make a step."""
        strategy, batch = self.strategy, self.batch
        found = strategy.read(replies, protocol.ENDS, self._read_ends)
        self._need_all(len(found))
        ends = strategy.model.edge_stages
        gradients = [torch.zeros_like(p) for p in ends.parameters()]
        unpack(sum(weights for weights, _ in found.values()), gradients)  # type: ignore[arg-type]
        for parameter, gradient in zip(ends.parameters(), gradients, strict=True):
            parameter.grad = gradient
        shared = sum(batch.shares[name] * buffers for name, (_, buffers) in found.items())
        unpack(shared, list(ends.buffers()))  # type: ignore[arg-type]
        strategy.optimizer.step()
        strategy.add_loss(batch.loss, batch.images)

    def _read_ends(self, _: str, content: RecordDict) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an edge's gradients of the ends, and their buffers, packed."""
        ends = self.strategy.model.edge_stages
        weights, buffers = (
            protocol.from_wire(content, name, (sum(t.numel() for t in tensors),), "float32")
            for name, tensors in (("weights", ends.parameters()), ("buffers", ends.buffers()))
        )
        validate_statistics(buffers, ends.named_buffers())
        return weights, buffers

    def _request(self, name: str, **arrays: Array) -> RecordDict:
        batch, strategy = self.batch, self.strategy
        place = {"epoch": batch.epoch, "number": batch.number, "share": batch.shares[name]}
        return strategy.request(place, **arrays)

    def _ends_again(self) -> dict[str, Array]:
        """Return the ends for processes that have not made the mixtures, and have to again."""
        return self.strategy.end_arrays() if self.strategy.fresh else {}
