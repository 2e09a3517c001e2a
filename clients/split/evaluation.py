"""What an edge answers about its held-out images: how often a model, or the cloud, is right."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import nn

from pudica.clients import shields
from pudica.clients.data import Part
from pudica.clients.split.holder import FrontHolder, Images, compare_in_batches, hash_tensors
from pudica.clients.split.training import concatenate
from pudica.models import packing


class EvaluationAnswers(FrontHolder):
    """The evaluation side of an :class:`.Edge`."""

    @abstractmethod
    def make_back(self) -> nn.Module:
        """Return layers behind the cut, with any weights; RuntimeError if there are none."""

    def evaluate(self, back: torch.Tensor, part: Part, epoch: int) -> dict[str, int]:
        """Return how many of the own images the whole model gets right, here on the device.

        Parameters
        ----------
        back : Tensor of shape (n,)
            As packed.
        epoch : int
            For the noise.

        Returns
        -------
        dict
            ``plain`` and ``noisy``, without and with the shield's noise; ``num-examples``.

        Raises
        ------
        RuntimeError, BudgetExhausted
            As of :meth:`.OpenReleases.release_counts`.
        """
        self._require_front()
        asked = (self._identity(), hash_tensors([back]), epoch) if self.releases.counts else ()
        total = len(self.images(part))
        counts = self.releases.release_counts(
            part, asked, ("plain", "noisy"), total, lambda: self._count(back, part, epoch)
        )
        return {**counts, "num-examples": total}

    def _count(self, back: torch.Tensor, part: Part, epoch: int) -> list[int]:
        layers = self.compute.move_model(self.make_back()).eval()
        packing.unpack(back.to(self.compute.device), packing.state_tensors(layers))
        if self.releases.guaranteed:
            self._check_answers_apart(layers)
        images, size = self.images(part), self.terms.batch_size
        correct = [0, 0]
        for start in range(0, len(images), size):
            activations, y = self._compute_activations(images, start, size)
            for noisy in (False, True):
                sent = self._shield(activations, noisy, part, epoch, start)
                with torch.no_grad():
                    guesses = self.compute.forward(layers, sent).argmax(1).cpu()
                correct[noisy] += int((guesses == y).sum())
        return correct

    def _check_answers_apart(self, layers: nn.Module) -> None:
        """See that what is said of one image does not depend on the others: they are counted."""

        def answer(x: torch.Tensor) -> torch.Tensor:
            return self.compute.forward(layers, self.compute.move_batch(x))

        one, other = compare_in_batches(answer, self.front.shield.shape)
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-6, equal_nan=True):
            raise RuntimeError("the model answers for an image by the whole batch: nothing is said")

    def features(self, start: int, count: int, noisy: bool) -> np.ndarray:
        """Return what leaves of some test images, to be classified, of shape (count, *shape).

        Raises
        ------
        RuntimeError
            They were to be sent without noise, and may not be; or not at all.
        ValueError
            They are no whole batches.
        """
        if not noisy and (self.releases.guaranteed or not self.releases.in_the_clear):
            raise RuntimeError("test activations without noise are not given away")
        images, size, end = self.images("test"), self.terms.batch_size, start + count
        whole = start % size == 0 and (end % size == 0 or end == len(images))
        if not (whole and 0 <= start <= end <= len(images)):
            # Noise is drawn for a batch: in other batches an image would get other noise.
            raise ValueError(f"test images {start} to {end} are no whole batches of {size}")

        def draw(place: str) -> np.ndarray:
            first = int(place)
            activations, _ = self._compute_activations(images, first, min(size, end - first))
            return self._encode(self._shield(activations, noisy, "test", 0, first))

        self._require_front()
        identity = self._identity() if self.releases.counts else b""
        return concatenate(
            self.releases.release_test(range(start, end, size), identity, noisy, draw)
        )

    def count_correct(self, predictions: torch.Tensor) -> int:
        """Return how many predicted classes are right; of all test images, or none is said.

        Raises
        ------
        ValueError
            They are not as many as the test images.
        RuntimeError, BudgetExhausted
            As of :meth:`.OpenReleases.release_counts`.
        """
        images = self.images("test")
        known: np.ndarray | None = getattr(images, "labels", None)
        labels = images.batch(np.arange(len(images)))[1].numpy() if known is None else known
        # Another shape would be compared with each label several times.
        if tuple(predictions.shape) != labels.shape or predictions.is_floating_point():
            raise ValueError(
                f"predictions {tuple(predictions.shape)} ({predictions.dtype}) for {len(labels)} "
                "test images"
            )
        correct = int((predictions.numpy() == labels).sum())
        asked = (hash_tensors([predictions]),)
        found = self.releases.release_counts(
            "test", asked, ("right",), len(labels), lambda: [correct]
        )
        return found["right"]

    def _compute_activations(
        self, images: Images, start: int, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the front's activations in evaluation mode, before the shield, and the labels."""
        x, y = images.batch(np.arange(start, min(start + count, len(images))))
        with self._evaluating(), torch.no_grad():
            return self._activate(x), y

    def _shield(self, activations: torch.Tensor, noisy: bool, *purpose: str | int) -> torch.Tensor:
        """Return activations as the back gets them, with noise or without."""
        with self._evaluating(), torch.no_grad():
            if noisy:
                return self._protect(activations, self._noise_identity(), *purpose)
            return shields.protect_without_noise(self.front.shield, activations)
