"""Encryption-aware training (§3.4 of paper 003): the model learns behind its own shield."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from flwr.app import Array, Message, RecordDict

from pudica.clients import protocol
from pudica.clients.facemix.images import read_batch
from pudica.clients.facemix.training import augment_batch, batch_rows
from pudica.clients.shields.mixing import padded_count
from pudica.models.attributes import (
    attribute_loss,
    compute_accuracies,
    compute_balanced_accuracies,
    compute_balancing_weights,
    count_confusions,
    predict_answers,
)
from pudica.models.errors import RequestError
from pudica.models.packing import unpack, validate_statistics
from pudica.models.randomness import has_random_layers, numpy_generator, seed_random_layers
from pudica.strategies.core.cohort import Read

if TYPE_CHECKING:
    import numpy as np

    from pudica.strategies.facemix.strategy import FaceMix

RATES = {"accuracy": compute_accuracies, "balanced_accuracy": compute_balanced_accuracies}
T = TypeVar("T")
Requests = tuple[str, Mapping[str, RecordDict]]
"""Of one exchange: their kind, and the request to each edge."""
Exchanges = Generator[Requests, Iterable[Message], None]


class Trainer(ABC):
    """How the exchanges of an epoch become steps on the model.

    Parameters
    ----------
    strategy : FaceMix
        Its model and optimiser are changed.
    """

    per_batch = 1
    """Exchanges that make a step together."""

    def __init__(self, strategy: FaceMix) -> None:
        self.strategy = strategy
        self.draws = has_random_layers(strategy.model)

    @abstractmethod
    def count_exchanges(self) -> int:
        """Return how many exchanges an epoch takes."""

    @abstractmethod
    def requests(self) -> Requests:
        """Return kind and requests of the next exchange."""

    @abstractmethod
    def handle_replies(self, replies: Iterable[Message]) -> None:
        """Take the replies, and make a step where they complete a batch."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what its next step depends on besides model and optimiser."""
        return {}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:  # noqa: B027
        """Load what :meth:`tensors` returned, among other tensors."""


class CentralTrainer(Trainer):
    """The model's owner trains alone on its own images; an epoch is one exchange of nothing."""

    def __init__(self, strategy: FaceMix) -> None:
        super().__init__(strategy)
        assert strategy.images is not None
        self.images = strategy.images
        self._weights = None
        if strategy.settings.training.class_weights == "balanced":
            attributes = torch.from_numpy(self.images.attributes)
            self._weights = compute_balancing_weights(attributes, strategy.answers)

    def count_exchanges(self) -> int:
        """Return 1."""
        return 1

    def requests(self) -> Requests:
        """Return no request."""
        return "", {}

    def handle_replies(self, replies: Iterable[Message]) -> None:  # noqa: ARG002
        """Train on all images once; each batch has its own keys."""
        strategy = self.strategy
        strategy.model.train()
        sizes = protocol.batch_sizes(len(self.images), strategy.settings.training.batch_size)
        for number, size in enumerate(sizes):
            strategy.add_loss(self._step(strategy.round, number), size)

    def _step(self, epoch: int, number: int) -> float:
        strategy, images, seed = self.strategy, self.images, self.strategy.seed
        training = strategy.settings.training
        rows = batch_rows(seed, 0, epoch, number, len(images), training.batch_size)
        x, answers = read_batch(images, rows)
        x = augment_batch(x, images.black, training.augment, seed, 0, epoch, number)
        truth = answers.to(strategy.compute.device)
        strategy.model.randomness = numpy_generator(seed, "mixing", 0, "batch", epoch, number)
        strategy.optimizer.zero_grad()
        with seed_random_layers(self.draws, seed, 0, epoch, number):
            loss = self.loss(strategy.compute.move_batch(x), truth, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        strategy.optimizer.step()
        return float(loss.detach())

    def loss(
        self,
        x: torch.Tensor,
        attributes: torch.Tensor,
        rows: np.ndarray,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return the loss of one batch of the images at some positions."""
        logits = self.strategy.compute.forward(self.strategy.model, x)
        return attribute_loss(logits, attributes, self._weights)


class SplitTrainer(Trainer):
    """Edges hold images, labels and the ends' graphs; the cloud its stage, and no images.

    Each batch takes three exchanges, after which the cloud makes one step with all three stages.
    With a single edge this is central training on its images to the last bit.
    """

    per_batch = 3

    def __init__(self, strategy: FaceMix) -> None:
        super().__init__(strategy)
        size = strategy.settings.training.batch_size
        self._sizes = {n: protocol.batch_sizes(m.train, size) for n, m in strategy.edges.items()}
        self._batch: Exchanges
        self._next: Requests

    def count_exchanges(self) -> int:
        """Return three for each batch of the edge that has most."""
        most = max(map(len, self._sizes.values()), default=0)
        if not most:
            raise RequestError(
                "no edge has training images: InferenceEdge(..., train=…), or give the owner's to "
                "FaceMix(..., train=…)"
            )
        return self.per_batch * most

    def requests(self) -> Requests:
        """Return kind and requests of the next exchange."""
        number, made = divmod(self.strategy.done, self.per_batch)
        if not made:
            self._batch = self._train_batch(number)
            self._next = next(self._batch)
        return self._next

    def handle_replies(self, replies: Iterable[Message]) -> None:
        """Take mixtures, losses or gradients; with these the batch makes a step."""
        try:
            self._next = self._batch.send(replies)
        except StopIteration:
            if (self.strategy.done + 1) % self.per_batch:  # not the batch's last exchange
                raise RuntimeError(
                    "a batch was broken off between its exchanges, and can't be gone on with: make "
                    "the strategy anew, or resume its record"
                ) from None

    def _train_batch(self, number: int) -> Exchanges:
        """Yield requests for mixtures, losses, and gradients of the ends; make a step."""
        strategy, which = self.strategy, {"epoch": self.strategy.round, "number": number}
        # An edge with fewer batches ends its epoch earlier.
        sizes = {name: own[number] for name, own in self._sizes.items() if number < len(own)}
        content = strategy.request(which, **strategy.end_arrays())
        there = [name for name in sizes if name in strategy.cohort.nodes]
        replies = yield protocol.MIXTURES, dict.fromkeys(there, content)

        received = self._read_mixtures(replies, sizes)
        counts = [len(rows) for rows in received.values()]
        mixtures = torch.cat([*received.values()]).requires_grad_()
        outputs = self._compute_outputs(mixtures, number)
        images = sum(sizes[name] for name in received)
        shares = {name: sizes[name] / images for name in received}
        # Processes that have not made the mixtures have to make them again.
        again = strategy.end_arrays() if strategy.fresh else {}
        parts = zip(received, outputs.detach().cpu().split(counts), strict=True)
        to_edge = {name: Array(rows.numpy()) for name, rows in parts}
        requests = {
            name: strategy.request({**which, "share": shares[name]}, outputs=rows, **again)
            for name, rows in to_edge.items()
        }
        replies = yield protocol.OUTPUTS, requests

        losses, gradients = self._read_losses(
            replies, outputs, dict(zip(received, counts, strict=True))
        )
        outputs.backward(gradients)
        loss = sum(value * shares[name] for name, value in losses.items())
        assert mixtures.grad is not None
        requests = {}
        for name, gradient in zip(received, mixtures.grad.split(counts), strict=True):
            arrays = {**again, "gradient": Array(gradient.cpu().numpy())}
            if strategy.fresh:
                arrays["outputs"] = to_edge[name]
            requests[name] = strategy.request({**which, "share": shares[name]}, **arrays)
        replies = yield protocol.ENDS, requests

        self._take_ends(replies, shares)
        strategy.optimizer.step()
        strategy.add_loss(loss, images)

    def _read_mixtures(
        self, replies: Iterable[Message], sizes: Mapping[str, int]
    ) -> dict[str, torch.Tensor]:
        strategy, shield = self.strategy, self.strategy.model.shield

        def read(name: str, content: RecordDict) -> torch.Tensor:
            shape = (padded_count(sizes[name], shield.config), *shield.shape)
            return protocol.from_wire(content, "mixtures", shape, strategy.settings.wire)

        received = strategy.read(replies, protocol.MIXTURES, read)
        least = min(strategy.min_nodes, len(sizes))
        strategy.cohort.require_min_replies(least, len(received), "training")
        return received

    def _compute_outputs(self, mixtures: torch.Tensor, number: int) -> torch.Tensor:
        strategy, compute = self.strategy, self.strategy.compute
        strategy.model.train()
        strategy.optimizer.zero_grad()
        with seed_random_layers(self.draws, strategy.seed, "main", strategy.round, number):
            return compute.forward(strategy.model.main, compute.move_batch(mixtures))

    def _read_losses(
        self, replies: Iterable[Message], outputs: torch.Tensor, counts: Mapping[str, int]
    ) -> tuple[dict[str, float], torch.Tensor]:
        """Return each edge's loss, and the gradient on the outputs of all edges."""

        def read(name: str, content: RecordDict) -> tuple[float, torch.Tensor]:
            shape = (counts[name], *outputs.shape[1:])
            gradient = protocol.from_wire(content, "gradient", shape, "float32")
            return protocol.number_of(content, "loss", 0), gradient

        found = self._read_all(replies, protocol.OUTPUTS, read, len(counts))
        gradients = torch.cat([gradient for _, gradient in found.values()])
        return {name: loss for name, (loss, _) in found.items()}, gradients.to(outputs.device)

    def _take_ends(self, replies: Iterable[Message], shares: Mapping[str, float]) -> None:
        """Sum the edges' gradients of the ends, and average their buffers."""
        ends = self.strategy.model.edge_stages

        def read(_: str, content: RecordDict) -> tuple[torch.Tensor, torch.Tensor]:
            weights, buffers = (
                protocol.from_wire(content, name, (sum(t.numel() for t in tensors),), "float32")
                for name, tensors in (("weights", ends.parameters()), ("buffers", ends.buffers()))
            )
            validate_statistics(buffers, ends.named_buffers())
            return weights, buffers

        found = self._read_all(replies, protocol.ENDS, read, len(shares))
        gradients = [torch.zeros_like(p) for p in ends.parameters()]
        unpack(sum(weights for weights, _ in found.values()), gradients)  # type: ignore[arg-type]
        for parameter, gradient in zip(ends.parameters(), gradients, strict=True):
            parameter.grad = gradient
        averaged = sum(shares[name] * buffers for name, (_, buffers) in found.items())
        unpack(averaged, list(ends.buffers()))  # type: ignore[arg-type]

    def _read_all(
        self, replies: Iterable[Message], kind: str, read: Read[T], count: int
    ) -> dict[str, T]:
        """Return what all edges of a batch reply: half a step is none."""
        found = self.strategy.read(replies, kind, read)
        self.strategy.cohort.require_min_replies(count, len(found), "training")
        return found


@torch.no_grad()
def count_on_validation(strategy: FaceMix, shielded: bool) -> torch.Tensor:
    """Return the model's answers on the owner's validation images, as counts (A, K, K)."""
    images, size = strategy.validation, strategy.settings.training.batch_size
    assert images is not None
    model, answers = strategy.model.eval(), strategy.answers
    counts = torch.zeros(len(strategy.attributes), answers, answers, dtype=torch.int64)
    for number, start in enumerate(range(0, len(images), size)):
        x, truth = read_batch(images, slice(start, start + size))
        key = numpy_generator(strategy.seed, "validation", number)
        model.randomness = key if shielded else None
        logits = strategy.compute.forward(model, strategy.compute.move_batch(x)).cpu()
        counts += count_confusions(predict_answers(logits, answers), truth, answers)
    return counts


def log_rates(strategy: FaceMix, stage: str, counts: torch.Tensor, **tags: str) -> float:
    """Log accuracy and balanced accuracy of each attribute, and their means; return the accuracy.

    Parameters
    ----------
    counts : int64 tensor of shape (A, K, K)
        As of :func:`pudica.models.attributes.count_confusions`.
    """
    for metric, rate in RATES.items():
        each = rate(counts)
        for name, value in zip(strategy.attributes, each.tolist(), strict=True):
            if math.isfinite(value):
                strategy.log(stage, metric, value, attribute=name, **tags)
        if torch.isfinite(each).any():
            strategy.log(stage, metric, float(each.nanmean()), **tags)
    return float(compute_accuracies(counts).nanmean())
