"""Independent component analysis: mixtures taken apart without a key.

Mixtures of a group are ``A x`` with one matrix for all of a feature map's places. Images are far
from independent of each other, but their *gradients* nearly are, and have heavy tails: what FastICA
needs (Hyvärinen 1999). Shuffling does not stop it: all mixtures of a request are one larger
mixing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning

from pudica.analysis.attacks.view import Observation, View, in_parts, mean
from pudica.models.randomness import derive, numpy_generator

ITERATIONS = 500
COMMON = 1000
RECOGNISED = 0.9

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Separated:
    """How well mixtures were taken apart.

    Attributes
    ----------
    correlations : ndarray of shape (n,)
        The size of the correlation of each true feature map with what was matched to it, both
        without the mean feature map of other images.
    rates : dict of str to float
        Balanced accuracy of the model's own answers on what was taken apart, of each attribute.
    true, found : Tensor of shape (n, *shape)
        Feature maps, and what was matched to each.
    images : int64 ndarray of shape (n,)
        Which image each is of, of the test part.
    """

    correlations: np.ndarray
    rates: Mapping[str, float]
    true: torch.Tensor
    found: torch.Tensor
    images: np.ndarray

    @property
    def success(self) -> float:
        """The mean of :attr:`rates`, 0 to 1."""
        return mean(self.rates)

    @property
    def recognised(self) -> float:
        """The share of feature maps that were found with a correlation of at least 0.9."""
        return float((self.correlations >= RECOGNISED).mean())


def separate(view: View, requests: int, known_groups: bool, seed: int) -> Separated:
    """Take requests of test images apart.

    Parameters
    ----------
    requests : int
        The most that are tried.
    known_groups : bool
        Whether the attacker knows which mixtures belong together, as without shuffling.
    """
    parts = []
    for number, seen in enumerate(_tried(view, requests, seed)):
        kinds = seen.groups[:, 0] if known_groups else np.zeros(len(seen.rows))
        for kind in np.unique(kinds):
            chosen = np.flatnonzero(kinds == kind)
            found = demixed(seen.rows[chosen].cpu(), derive(seed, "ica", number, int(kind)))
            parts.append((found, seen.images[chosen]))
    return _judged(view, parts)


def left_mixed(view: View, requests: int, seed: int) -> Separated:
    """Judge mixtures as they are, matched in the same way: what :func:`separate` has to beat."""
    tried = _tried(view, requests, seed)
    return _judged(view, [(seen.rows.cpu(), seen.images) for seen in tried])


def left_plain(view: View, images: np.ndarray) -> dict[str, float]:
    """Return how often the model tells each attribute of some test images without the shield."""
    parts = in_parts(images, view.request)
    test = view.data.test
    return view.rates((view.logits(view.features(test, part)), part) for part in parts)


def _tried(view: View, requests: int, seed: int) -> Iterator[Observation]:
    return islice(view.observations(view.data.test, seed, "separation"), requests)


def demixed(mixtures: torch.Tensor, seed: int) -> torch.Tensor:
    """Return what FastICA on gradients makes of mixtures, in any order; (n, *shape).

    The true matrix is orthogonal, so rows of its inverse have length 1, which gives the scale.
    Of features that a ReLU has cut off at 0 the sign is that of the mean.

    Parameters
    ----------
    mixtures : Tensor of shape (n, C, H, W)
    """
    values = mixtures.double().numpy()
    samples = np.concatenate(
        [np.diff(values, axis=axis).reshape(len(values), -1) for axis in (2, 3)], axis=1
    )
    ica = FastICA(
        whiten="unit-variance",
        max_iter=ITERATIONS,
        random_state=int(numpy_generator(seed, "start").integers(2**31)),
    )
    with warnings.catch_warnings():
        # What it has found when it stops is judged all the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        ica.fit(samples.T)
    unmixing = ica.components_ / np.linalg.norm(ica.components_, axis=1, keepdims=True)
    found = np.einsum("ij,j...->i...", unmixing, values)
    signs = np.sign(found.mean(axis=(1, 2, 3)))
    return torch.from_numpy(found * np.where(signs == 0, 1, signs)[:, None, None, None]).float()


def matched(true: Rows, found: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return which found row fits each true one best, all together, and their correlations."""
    count = len(true)
    sizes = np.abs(np.corrcoef(true.reshape(count, -1), found.reshape(count, -1))[:count, count:])
    rows, columns = linear_sum_assignment(-sizes)
    return columns, sizes[rows, columns]


def _judged(view: View, parts: list[tuple[torch.Tensor, np.ndarray]]) -> Separated:
    # What all feature maps have in common is no success.
    common = view.features(view.known, slice(0, COMMON)).cpu().mean(0, keepdim=True)
    trues = [view.features(view.data.test, images).cpu() for _, images in parts]
    founds, correlations = [], []
    for true, (found, _) in zip(trues, parts, strict=True):
        columns, sizes = matched((true - common).numpy(), (found - common).numpy())
        founds.append(found[columns])
        correlations.append(sizes)
    images = [images for _, images in parts]
    return Separated(
        np.concatenate(correlations),
        view.rates((view.logits(found), of) for found, of in zip(founds, images, strict=True)),
        torch.cat(trues),
        torch.cat(founds),
        np.concatenate(images),
    )
