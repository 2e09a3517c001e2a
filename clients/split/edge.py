"""A device of split learning: private images, the front of a model, answers to the cloud."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from pudica import models
from pudica.clients import protocol, shields
from pudica.clients.assignments import EdgeAssignment
from pudica.clients.data import ImageSet, Part, Splits, load_once
from pudica.clients.runtime.role import Role
from pudica.clients.runtime.snapshots import Snapshots
from pudica.clients.runtime.vault import Vault
from pudica.clients.shields.front import Front, activation_shape
from pudica.clients.shields.integers import IntegerMechanism
from pudica.clients.split.releases import EdgeReleases
from pudica.models import optimizers, packing
from pudica.models.compute import Compute
from pudica.models.cut import Cutter
from pudica.models.randomness import (
    Randomness,
    SecretGenerator,
    SystemGenerator,
    has_random_layers,
    numpy_generator,
    seed_random_layers,
)

KEY = "noise.key"

Seconds = dict[str, int | float]


@dataclass
class Sent:
    """The batches that were sent last, until their gradient comes back.

    Attributes
    ----------
    turn : int
        Of the exchange; a gradient says of which turn it is.
    epoch, step, count : int
        The first batch of the epoch, and how many.
    outputs : list of Tensor
        What was sent of each batch, with its graph; empty after a restart.
    """

    turn: int
    epoch: int
    step: int
    count: int
    outputs: list[torch.Tensor] = field(default_factory=list)

    def note(self) -> dict[str, int]:
        """Return what a restarted device needs to compute it again."""
        return {"turn": self.turn, "epoch": self.epoch, "step": self.step, "count": self.count}


@lru_cache(maxsize=2)
def _traced(model: str, classes: int, channels: int, side: int) -> Cutter:
    """Return a traced model, shared by the devices of one process."""
    built = models.build(model, num_classes=classes, channels=channels, image_size=side)
    return Cutter(built)


class Edge(Role):
    """One device's side of every exchange.

    Parameters
    ----------
    vault : Vault
        Where its front, its key and its count of releases live.
    assignment : EdgeAssignment
    """

    def __init__(self, vault: Vault, assignment: EdgeAssignment) -> None:
        self.vault = vault
        self.assignment = assignment
        self.compute = Compute(assignment.compute)
        self.data: Splits = load_once(assignment.data.model_dump_json(), assignment.data_seed)
        self.train = self._own("train")
        self.front = self._built()
        self.turn = -1
        self.exchange = ""
        self._ready = False
        self.pending: Sent | None = None
        self.optimizer = optimizers.build(assignment.optimizer, self.front.parameters())
        self.terms = assignment.fingerprint()
        self.releases = EdgeReleases(vault, assignment, self.data, self.front.shield)
        self.snapshots = Snapshots(vault, assignment.case, self.terms)
        self._draws = has_random_layers(self.front)
        self._orders: dict[int, np.ndarray] = {}
        self._ends = np.cumsum(protocol.batch_sizes(len(self.train), assignment.batch_size))

    def describe_data(self) -> dict[str, int | str]:
        """Return what the cloud is told of the data."""
        return {
            "classes": self.data.num_classes,
            "key": self.data.key,
            "shape": "x".join(map(str, self.data.shape)),
            "reports": int(self.assignment.report),
            "train": len(self.train),
            "validation": len(self._own("validation")),
            "test": len(self._own("test")),
        }

    def _own(self, part: Part) -> ImageSet:
        """Return this device's share of the training, validation or test images."""
        return self.assignment.share(self.data, part)

    def _built(self) -> Front:
        a = self.assignment
        layers, _ = self._cutter().cut(a.cut)
        # A copy: the traced model is shared with the other devices of this process.
        layers = copy.deepcopy(layers)
        shape = activation_shape(layers, self.data.shape)
        front = Front(layers, shields.build(a.shield, shape, a.batch_size))
        front.requires_grad_(a.fronts != "frozen")
        self._learning(front)
        return self.compute.move_model(front)  # type: ignore[return-value]

    def _learning(self, front: Front) -> None:
        """Put a front into the mode in which it releases training examples.

        A frozen one's layers do not move; its shield normalises by the batch all the same.
        """
        front.layers.train(self.assignment.fronts != "frozen")
        front.shield.train()

    def _cutter(self) -> Cutter:
        channels, side, _ = self.data.shape
        a = self.assignment
        return _traced(a.model, self.data.num_classes, channels, side)

    # --------------------------------------------------------------------- the front

    def adopt(self, arrays: Mapping[str, torch.Tensor]) -> None:
        """Take over a front that the cloud sends, and the state of its optimiser.

        Parameters
        ----------
        arrays : mapping of str to Tensor
            ``front``, of shape (n,) as packed; ``optimizer/…``.

        Raises
        ------
        RuntimeError
            If the device has one that the cloud is not to change.
        """
        given, layers = arrays["front"], packing.state_tensors(self.front.layers)
        # Layers come first; what the shield remembers may have moved.
        own = given.numpy()[: sum(layer.numel() for layer in layers)]
        if self._ready and self.assignment.fronts in ("private", "frozen"):
            if not np.array_equal(packing.pack(layers), own):
                self._refuse_front()
            return
        self._check_front(own)
        packing.unpack(given.to(self.compute.device), packing.state_tensors(self.front))
        optimizers.load_optimizer_state(self.optimizer, packing.select_prefix("optimizer/", arrays))
        if self.releases.guaranteed:
            self._check_rows_apart()
        self.pending, self._ready = None, True

    def _check_front(self, layers: np.ndarray) -> None:
        """Take no front but one's own, if there is one; nor another in a case of a frozen one.

        Whoever joins it again.
        """
        digest = hashlib.blake2b(layers.tobytes(), digest_size=16).hexdigest()
        limits = self.assignment.limits
        if limits and limits.front and limits.front != digest:
            raise RuntimeError(
                f"this device takes the front {limits.front} and no other; this is {digest}"
            )
        frozen = self.assignment.fronts == "frozen"
        if frozen and not self.vault.pin(f"{self.assignment.case}-front", digest):
            self._refuse_front()

    def _refuse_front(self) -> None:
        raise RuntimeError(f"the front is {self.assignment.fronts}, and stays as it is")

    @torch.no_grad()
    def _check_rows_apart(self) -> None:
        """See that an image's activation does not depend on what else is in the batch.

        A guarantee for a record rests on it. The images are drawn, and nobody's.
        """
        drawn = torch.rand(4, *self.data.shape, generator=torch.Generator().manual_seed(0))
        shield = self.front.shield
        assert isinstance(shield, IntegerMechanism)
        with self._evaluating():
            outputs = (
                self.compute.forward(self.front, self.compute.move_batch(x))
                for x in (drawn, _others(drawn))
            )
            one, other = (shield.round_to_grid(shield.validate_input(output))[0] for output in outputs)
        if (one - other).abs().max() > 1:
            raise RuntimeError(
                "the front computes an image's activation from the whole batch, so nothing can be "
                "promised to one image"
            )

    def need_fronts(self, mode: str) -> None:
        """Raise RuntimeError unless the fronts are kept in this way."""
        if self.assignment.fronts != mode:
            raise RuntimeError(f"the front is {self.assignment.fronts}, and stays on this device")

    def _need_front(self) -> None:
        if not self._ready:
            raise RuntimeError(
                "this device has no front: it was given none, or its vault was emptied"
            )

    def handed_on(self) -> dict[str, np.ndarray]:
        """Return the front and the state of its optimiser, as :meth:`adopt` takes them.

        Raises
        ------
        RuntimeError
            If it is not handed on from device to device.
        """
        self.need_fronts("handoff")
        state = optimizers.optimizer_state(self.optimizer).items()
        kept = {f"optimizer/{name}": value.cpu().numpy() for name, value in state}
        return {"front": packing.pack(packing.state_tensors(self.front)), **kept}

    def learn(self, gradient: torch.Tensor, scale: float, turn: int) -> Seconds:
        """Take a step of the front's optimiser for each of the last batches.

        The gradients of all of them are those at the weights with which they were computed.

        Parameters
        ----------
        gradient : Tensor of shape (N, *shape)
            Of the loss with respect to what was sent in that turn, times ``scale``.

        Returns
        -------
        dict
            ``backward``, seconds; ``skipped``, 1 if there is nothing that it is a gradient of:
            the device was restarted since, or did not know that its answer had arrived.
        """
        chunk, start = self.pending, time.perf_counter()
        self.pending = None
        if chunk is None or chunk.turn != turn or self.optimizer is None:
            return {"skipped": 1}
        rate = self.assignment.optimizer.learning_rate_at(chunk.epoch)
        optimizers.set_learning_rate(self.optimizer, rate)
        parameters = list(self.front.parameters())
        for gradients in self._gradients(chunk, gradient, scale):
            for parameter, value in zip(parameters, gradients, strict=True):
                parameter.grad = value
            self.optimizer.step()
        return {"backward": time.perf_counter() - start}

    def front_gradient(
        self, gradient: torch.Tensor, scale: float, turn: int
    ) -> tuple[np.ndarray, Seconds]:
        """Return the front's gradient, summed over the last batches, and its buffers, packed.

        Raises
        ------
        RuntimeError
            If the fronts are not averaged; or the device was restarted since, and nothing was
            kept.
        """
        self.need_fronts("average")
        chunk, start = self.pending, time.perf_counter()
        self.pending = None
        if chunk is None or chunk.turn != turn:
            raise RuntimeError(f"has nothing that this is the gradient of (turn {turn})")
        batches = self._gradients(chunk, gradient, scale)
        summed = [torch.stack(each).sum(0) for each in zip(*batches, strict=True)]
        values = packing.pack([*summed, *self.front.buffers()])
        return values, {"backward": time.perf_counter() - start}

    def _gradients(
        self, chunk: Sent, gradient: torch.Tensor, scale: float
    ) -> list[tuple[torch.Tensor, ...]]:
        """Return the gradient of the front's parameters for each batch of a chunk."""
        outputs = chunk.outputs or self._computed_again(chunk)
        sizes = [len(output) for output in outputs]
        shape = (sum(sizes), *outputs[0].shape[1:])
        if tuple(gradient.shape) != shape or not gradient.is_floating_point():
            raise ValueError(
                f"a gradient of shape {tuple(gradient.shape)} ({gradient.dtype}) for what was "
                f"sent as {shape}"
            )
        gradient = gradient.to(self.compute.device).float()
        parts = (gradient if scale == 1 else gradient / scale).split(sizes)
        parameters = list(self.front.parameters())
        return [
            torch.autograd.grad(output, parameters, part)
            for output, part in zip(outputs, parts, strict=True)
        ]

    def _computed_again(self, chunk: Sent) -> list[torch.Tensor]:
        """Return a chunk's outputs after a restart; running statistics do not move twice."""
        before = [buffer.clone() for buffer in self.front.buffers()]
        outputs = [self._batch(chunk.epoch, step) for step in self._steps(chunk)]
        with torch.no_grad():
            for buffer, value in zip(self.front.buffers(), before, strict=True):
                buffer.copy_(value)
        return outputs

    @staticmethod
    def _steps(chunk: Sent) -> range:
        return range(chunk.step, chunk.step + chunk.count)

    # ---------------------------------------------------------------------- releases

    def smash(
        self, epoch: int, step: int, count: int, turn: int
    ) -> tuple[np.ndarray, np.ndarray, Seconds]:
        """Return what the cloud gets to see of ``count`` batches of an epoch, and their labels.

        Returns
        -------
        smashed : ndarray of shape (N, *shape)
        labels : int32 ndarray of shape (N,)
        seconds : dict

        Raises
        ------
        BudgetExhausted
            If the examples were released as often as they may be.
        """
        start = time.perf_counter()
        if count:
            self._need_front()
        chunk = Sent(turn, epoch, step, count)
        labels = [torch.from_numpy(self._labels(epoch, s)) for s in self._steps(chunk)]
        smashed = self._released(chunk)
        self.pending = chunk if self.optimizer and count else None
        self.turn = max(self.turn, turn)
        classes = packing.concatenate(labels) if labels else torch.zeros(0)
        # How long it took depends on the images, too.
        seconds = {} if self.releases.guaranteed else {"forward": time.perf_counter() - start}
        return smashed, classes.to(torch.int32).numpy(), seconds

    def _released(self, chunk: Sent) -> np.ndarray:
        """Return what is sent of a chunk's batches."""
        if not self.releases.counts:
            outputs = chunk.outputs = [self._batch(chunk.epoch, s) for s in self._steps(chunk)]
            return self._sent([output.detach() for output in outputs])
        identity = self._identity()

        def draw(place: str) -> np.ndarray:
            output = self._batch(chunk.epoch, int(place))
            chunk.outputs.append(output)
            return self._sent([output.detach()])

        return self._together(
            self.releases.of_training(chunk.epoch, self._steps(chunk), identity, draw)
        )

    def _labels(self, epoch: int, step: int) -> np.ndarray:
        own: np.ndarray = self.train.labels[self._positions(epoch, step)]
        return own.copy()

    def _batch(self, epoch: int, step: int) -> torch.Tensor:
        """Return the protected activations of one batch, with their graph."""
        self._need_front()
        x, _ = self.train.batch(self._positions(epoch, step))
        before = self._identity()
        with torch.set_grad_enabled(self.optimizer is not None), self._seeded(epoch, step):
            activations = self.compute.forward(self.front, self.compute.move_batch(x))
            return self._protected(activations, before, "train", epoch, step)

    def _seeded(self, epoch: int, step: int) -> AbstractContextManager[None]:
        a = self.assignment
        return seed_random_layers(self._draws, a.seed, a.partition, epoch, step)

    def _positions(self, epoch: int, step: int) -> np.ndarray:
        """Return which of the own images a batch consists of."""
        if epoch not in self._orders:
            randomness = numpy_generator(
                self.assignment.seed, "order", self.assignment.partition, epoch
            )
            self._orders = {epoch: randomness.permutation(len(self.train))}
        ends = self._ends
        if not 0 <= step < len(ends):
            raise ValueError(f"batch {step} of an epoch of {len(ends)} was asked for")
        start = ends[step - 1] if step else 0
        return self._orders[epoch][start : ends[step]]

    def _protected(
        self, activations: torch.Tensor, identity: bytes, *purpose: str | int
    ) -> torch.Tensor:
        randomness = self._randomness(activations, identity, *purpose)
        try:
            protected, _ = self.front.shield.protect(activations, randomness)
        except ValueError as error:
            raise ValueError(
                f"device-{self.assignment.partition}: the activation after "
                f"'{self.assignment.cut}': {error}"
            ) from error
        return protected

    def _randomness(
        self, activations: torch.Tensor, identity: bytes, *purpose: str | int
    ) -> Randomness:
        """Return what the noise of one batch is drawn from.

        Secret noise with a guarantee is new each time; what it gave is kept. Without one it hangs
        on the front that it is asked for with, and on the activations themselves: asked for the
        same again the device says the same, and no other activations ever get the same noise.
        """
        a = self.assignment
        if a.noise == "seeded":
            return numpy_generator(a.seed, "noise", a.partition, *purpose)
        if self.releases.guaranteed:
            return SystemGenerator()
        what = "/".join(map(str, (self.terms, *purpose))).encode()
        return SecretGenerator(self.vault.secret(KEY), identity + _digest([activations]) + what)

    def _identity(self) -> bytes:
        """Return what tells this front from all others, at this moment: weights and statistics."""
        if self.assignment.noise == "seeded" and not self.releases.counts:
            return b""  # nobody asks
        return _digest(packing.state_tensors(self.front))

    def _sent(self, outputs: Sequence[torch.Tensor]) -> np.ndarray:
        if not outputs:
            return np.zeros(0, np.float32)
        joined = packing.concatenate(outputs)
        return protocol.on_wire(joined, self.assignment.wire, self.front.shield.grid)

    @staticmethod
    def _together(parts: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate(list(parts.values())) if parts else np.zeros(0, np.float32)

    # -------------------------------------------------------------------- evaluation

    def evaluate(self, back: torch.Tensor, part: Part, epoch: int) -> dict[str, int]:
        """Return how many of the own images the whole model gets right, here on the device.

        Parameters
        ----------
        back : Tensor of shape (n,)
            As packed.
        part : {"validation", "test"}
        epoch : int
            For the noise.

        Returns
        -------
        dict
            ``plain`` and ``noisy``, without and with the shield's noise; ``num-examples``.

        Raises
        ------
        RuntimeError
            For training images; or if the device says nothing of these.
        BudgetExhausted
            If it has said as much as it may.
        """
        self._need_front()
        asked = (self._identity(), _digest([back]), epoch)
        total = len(self._own(part))
        counts = self.releases.counted(
            part, asked, ("plain", "noisy"), total, lambda: self._count(back, part, epoch)
        )
        return {**counts, "num-examples": total}

    def _count(self, back: torch.Tensor, part: Part, epoch: int) -> list[int]:
        """Return how many are right without and with noise, as they are."""
        _, layers = self._cutter().cut(self.assignment.cut)
        layers = self.compute.move_model(copy.deepcopy(layers)).eval()
        packing.unpack(back.to(self.compute.device), packing.state_tensors(layers))
        if self.releases.guaranteed:
            self._check_answers_apart(layers)
        images, size = self._own(part), self.assignment.batch_size
        right = [0, 0]
        for start in range(0, len(images), size):
            activations = self._activations(images, start, size)
            y = torch.from_numpy(images.labels[start : start + size])
            for noisy in (False, True):
                sent = self._shielded(activations, noisy, part, epoch, start)
                with torch.no_grad():
                    guesses = self.compute.forward(layers, sent).argmax(1).cpu()
                right[noisy] += int((guesses == y).sum())
        return right

    @torch.no_grad()
    def _check_answers_apart(self, layers: torch.nn.Module) -> None:
        """See that what is said of one image does not depend on the others: they are counted."""
        shape = (4, *self.front.shield.shape)
        drawn = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        one, other = (
            self.compute.forward(layers, self.compute.move_batch(x))[0] for x in (drawn, _others(drawn))
        )
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-6, equal_nan=True):
            raise RuntimeError("the model answers for an image by the whole batch: nothing is said")

    def features(self, start: int, count: int, noisy: bool) -> np.ndarray:
        """Return what leaves the device of some of its test images, to be classified.

        Returns
        -------
        ndarray of shape (count, *shape)

        Raises
        ------
        RuntimeError
            If they were to be sent without noise, and may not be; or not at all.
        ValueError
            If they are no whole batches.
        """
        if not noisy and (self.releases.guaranteed or not self.assignment.plain_to_cloud):
            raise RuntimeError("test activations without noise are not given away")
        images, size, end = self._own("test"), self.assignment.batch_size, start + count
        whole = start % size == 0 and (end % size == 0 or end == len(images))
        if not (whole and 0 <= start <= end <= len(images)):
            # Noise is drawn for a batch: in other batches an image would get other noise.
            raise ValueError(f"test images {start} to {end} are no whole batches of {size}")

        def draw(place: str) -> np.ndarray:
            first = int(place)
            activations = self._activations(images, first, min(size, end - first))
            return self._sent([self._shielded(activations, noisy, "test", 0, first)])

        self._need_front()
        places = range(start, end, size)
        return self._together(self.releases.of_test(places, self._identity(), noisy, draw))

    def right(self, predictions: torch.Tensor) -> int:
        """Return how many predicted classes are right; of all test images, or none is said.

        Raises
        ------
        ValueError
            If they are not as many as the test images.
        RuntimeError, BudgetExhausted
            As :meth:`evaluate`.
        """
        labels = self._own("test").labels
        # Another shape would be compared with each label several times.
        if tuple(predictions.shape) != labels.shape or predictions.is_floating_point():
            raise ValueError(
                f"predictions {tuple(predictions.shape)} ({predictions.dtype}) for {len(labels)} "
                "test images"
            )
        right = int((predictions.numpy() == labels).sum())
        asked = (_digest([predictions]),)
        found = self.releases.counted("test", asked, ("right",), len(labels), lambda: [right])
        return found["right"]

    def _activations(self, images: ImageSet, start: int, count: int) -> torch.Tensor:
        """Return the front's activations in evaluation mode, before the shield."""
        self._need_front()
        x, _ = images.batch(np.arange(start, min(start + count, len(images))))
        with self._evaluating(), torch.no_grad():
            return self.compute.forward(self.front, self.compute.move_batch(x))

    def _shielded(
        self, activations: torch.Tensor, noisy: bool, *purpose: str | int
    ) -> torch.Tensor:
        """Return activations as the back gets them, with noise or without."""
        with self._evaluating(), torch.no_grad():
            if noisy:
                return self._protected(activations, self._identity(), *purpose)
            return shields.protect_without_noise(self.front.shield, activations)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.front.eval()
        try:
            yield
        finally:
            self._learning(self.front)

    # ------------------------------------------------------------------------ restarts

    def keep(self, turn: int, needed: int) -> None:
        """Put everything that the next turn depends on into the vault.

        Parameters
        ----------
        turn, needed : int
            As of :meth:`pudica.clients.runtime.snapshots.Snapshots.keep`.
        """
        self._need_front()
        tensors = {f"front/{k}": v for k, v in self.front.state_dict().items()}
        tensors |= {f"optimizer/{k}": v for k, v in optimizers.optimizer_state(self.optimizer).items()}
        pending = self.pending.note() if self.pending else None
        note = {"pending": pending, "exchange": self.exchange}
        self.snapshots.keep(turn, needed, tensors, note)
        self.turn = turn

    def begin(self, exchange: str) -> None:
        """Be up to date, and as before an exchange that is repeated.

        A device that was killed after it had kept a turn, and before it had kept its answer, is
        asked for that turn again: with the front as it was, it says the same.

        Parameters
        ----------
        exchange : str
            By which a repetition is known; empty where there are none.
        """
        newest, self.exchange = self.snapshots.newest(), exchange
        kept = self.snapshots.load(newest) if exchange else None
        if kept and kept[1].get("exchange") == exchange:
            self.snapshots.drop_after(newest - 1)
        self.catch_up()

    def catch_up(self) -> None:
        """Go on where another process left off, if one has answered for this device since."""
        newest = self.snapshots.newest()
        if newest > self.turn and (kept := self.snapshots.load(newest)):
            self._restore(newest, *kept)

    def roll_back(self, turn: int) -> None:
        """Go back to the newest snapshot that is not newer than a turn: a run is resumed."""
        self.snapshots.drop_after(turn)
        self.catch_up()

    def _restore(self, turn: int, tensors: dict[str, torch.Tensor], note: dict[str, Any]) -> None:
        self.front.load_state_dict(packing.select_prefix("front/", tensors))
        optimizers.load_optimizer_state(self.optimizer, packing.select_prefix("optimizer/", tensors))
        self.pending = Sent(**note["pending"]) if note["pending"] else None
        self.turn, self._ready = turn, True


def _others(drawn: torch.Tensor) -> torch.Tensor:
    """Return a batch of which all but the first example differ."""
    return torch.cat([drawn[:1], 1 - drawn[1:]])


def _digest(tensors: Sequence[torch.Tensor]) -> bytes:
    return hashlib.blake2b(packing.pack(tensors).tobytes(), digest_size=16).digest()
