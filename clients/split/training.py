"""What an edge answers while the model is trained: smashed data up, gradients down."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pudica.clients.split.holder import FrontHolder, Output, Sent
from pudica.models import optimizers, packing
from pudica.models.randomness import numpy_generator, seed_random_layers

Seconds = dict[str, int | float]


class TrainingAnswers(FrontHolder):
    """The training side of an :class:`.Edge`."""

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
            self._require_front()
        chunk = Sent(turn, epoch, step, count)
        self._seen.clear()
        smashed = self._release(chunk)
        labels = [self._labels(epoch, number) for number in chunk.steps]
        self.pending = chunk if self.optimizer and count else None
        self.turn = max(self.turn, turn)
        classes = packing.concatenate(labels) if labels else torch.zeros(0)
        # How long it took depends on the images, too.
        seconds = {} if self.releases.guaranteed else {"forward": time.perf_counter() - start}
        return smashed, classes.to(torch.int32).numpy(), seconds

    def _release(self, chunk: Sent) -> np.ndarray:
        """Return what is sent of a chunk's batches."""

        def draw(place: str) -> np.ndarray:
            output = self._batch(chunk.epoch, int(place))
            chunk.outputs.append(output)
            return self._encode(output.protected.detach())

        front = self._identity() if self.releases.counts else b""
        return concatenate(self.releases.release_training(chunk.epoch, chunk.steps, front, draw))

    def _labels(self, epoch: int, step: int) -> torch.Tensor:
        """Return the labels of a batch, without its images where that is possible."""
        if step in self._seen:
            return self._seen[step]
        positions, known = self._positions(epoch, step), getattr(self.train, "labels", None)
        if known is not None:
            return torch.from_numpy(known[positions].copy())
        return self.train.batch(positions)[1]

    def _batch(self, epoch: int, step: int) -> Output:
        """Return the protected activations of one batch and its penalty, with their graph."""
        x, self._seen[step] = self._load(epoch, step)
        before = self._noise_identity()
        seed, place = self.terms.seed, self.terms.place
        with (
            torch.set_grad_enabled(self.optimizer is not None),
            seed_random_layers(self._has_random_layers, seed, place, epoch, step),
        ):
            activations = self._activate(x)
            protected = self._protect(activations, before, "train", epoch, step)
            return Output(protected, self._penalise(x, activations))

    def _penalise(self, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor | None:
        """Return what the shield adds to the loss of a front that learns, if anything."""
        if self.optimizer is None:
            return None
        return self.front.shield.penalty(self.compute.move_batch(x), activations)

    def _load(self, epoch: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images and labels of one batch."""
        return self.train.batch(self._positions(epoch, step))

    def _positions(self, epoch: int, step: int) -> np.ndarray:
        """Return which of the own images a batch consists of."""
        if epoch not in self._orders:
            seed, place = self.terms.seed, self.terms.place
            self._orders = {epoch: draw_order(seed, place, epoch, len(self.train))}
        ends = self._ends
        if not 0 <= step < len(ends):
            raise ValueError(f"batch {step} of an epoch of {len(ends)} was asked for")
        start = ends[step - 1] if step else 0
        return self._orders[epoch][start : ends[step]]

    # ---------------------------------------------------------------------- gradients

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
        chunk, start = self._take_pending(turn), time.perf_counter()
        if chunk is None or self.optimizer is None:
            return {"skipped": 1}
        optimizers.begin_epoch(self.optimizer, self.terms.optimizer, chunk.epoch)
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
            The fronts are not averaged; or the device was restarted since, and nothing was kept.
        """
        self.require_fronts("average")
        chunk, start = self._take_pending(turn), time.perf_counter()
        if chunk is None:
            raise RuntimeError(f"has nothing that this is the gradient of (turn {turn})")
        batches = self._gradients(chunk, gradient, scale)
        summed = [torch.stack(each).sum(0) for each in zip(*batches, strict=True)]
        values = packing.pack([*summed, *self.shared.buffers()])
        return values, {"backward": time.perf_counter() - start}

    def _take_pending(self, turn: int) -> Sent | None:
        """Return what was sent last, if it was in this turn; no gradient comes for it again."""
        chunk, self.pending = self.pending, None
        return chunk if chunk and chunk.turn == turn else None

    def _gradients(
        self, chunk: Sent, gradient: torch.Tensor, scale: float
    ) -> list[tuple[torch.Tensor, ...]]:
        """Return the gradient of the front's parameters for each batch of a chunk."""
        outputs = chunk.outputs or self._recompute(chunk)
        sizes = [len(output.protected) for output in outputs]
        shape = (sum(sizes), *outputs[0].protected.shape[1:])
        if tuple(gradient.shape) != shape or not gradient.is_floating_point():
            raise ValueError(
                f"a gradient of shape {tuple(gradient.shape)} ({gradient.dtype}) for what was "
                f"sent as {shape}"
            )
        gradient = gradient.to(self.compute.device).float()
        parts = (gradient if scale == 1 else gradient / scale).split(sizes)
        parameters = list(self.front.parameters())
        return [
            _differentiate(output, part, parameters)
            for output, part in zip(outputs, parts, strict=True)
        ]

    def _recompute(self, chunk: Sent) -> list[Output]:
        """Return a chunk's outputs after a restart; running statistics do not move twice."""
        before = [buffer.clone() for buffer in self.front.buffers()]
        outputs = [self._batch(chunk.epoch, step) for step in chunk.steps]
        with torch.no_grad():
            for buffer, value in zip(self.front.buffers(), before, strict=True):
                buffer.copy_(value)
        return outputs

    def return_front(self) -> dict[str, np.ndarray]:
        """Return the front and the state of its optimiser, as :meth:`adopt` takes them.

        Raises
        ------
        RuntimeError
            If it is not handed on from device to device.
        """
        self.require_fronts("handoff")
        state = optimizers.optimizer_state(self.optimizer).items()
        kept = {f"optimizer/{name}": value.cpu().numpy() for name, value in state}
        return {"front": packing.pack(packing.state_tensors(self.shared)), **kept}


def _differentiate(
    output: Output, gradient: torch.Tensor, parameters: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Return the gradient of a batch's loss: what came back from the cloud, and the penalty's."""
    if output.penalty is None:
        return torch.autograd.grad(output.protected, parameters, gradient)
    return torch.autograd.grad([output.protected, output.penalty], parameters, [gradient, None])


def draw_order(seed: int, place: int | str, epoch: int, count: int) -> np.ndarray:
    """Return in which order a device's images come in an epoch; who knows the seed knows it."""
    return numpy_generator(seed, "order", place, epoch).permutation(count)


def concatenate(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return what leaves from several places as one array."""
    return np.concatenate(list(parts.values())) if parts else np.zeros(0, np.float32)
