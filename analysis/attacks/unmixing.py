"""Blind source separation: mixtures unmixed without a key by independent component analysis.

Mixtures of a group are ``A x`` with the same matrix at all positions of a feature map. Images are
far from independent, but their *gradients* nearly are, and have heavy tails, as FastICA requires
(Hyvärinen 1999). Shuffling does not prevent it: all mixtures of a request form one larger mixing.
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

from pudica.analysis.views.facemix import FacemixView, Observation, mean, split_evenly
from pudica.models.randomness import derive, numpy_generator

ITERATIONS = 500
COMMON = 1000
RECOGNISED = 0.9

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class UnmixingResult:
    """How well mixtures were unmixed.

    Attributes
    ----------
    correlations : ndarray of shape (n,)
        Absolute correlation of each true feature map with the one matched to it, both after
        subtracting the mean feature map of other images.
    rates : dict of str to float
        The model's balanced accuracy per attribute on the unmixed feature maps.
    true, found : Tensor of shape (n, *shape)
        True feature maps, and the unmixed one matched to each.
    images : int64 ndarray of shape (n,)
        Positions in the test part.
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
        """Share of feature maps recovered with a correlation of at least 0.9."""
        return float((self.correlations >= RECOGNISED).mean())


def unmix(view: FacemixView, requests: int, known_groups: bool, seed: int) -> UnmixingResult:
    """Unmix some requests of test images.

    ``known_groups``: the attacker knows which mixtures belong together, as without shuffling.
    """
    parts = []
    for number, seen in enumerate(_observe_requests(view, requests, seed)):
        kinds = seen.groups[:, 0] if known_groups else np.zeros(len(seen.rows))
        for kind in np.unique(kinds):
            chosen = np.flatnonzero(kinds == kind)
            found = run_fast_ica(seen.rows[chosen].cpu(), derive(seed, "ica", number, int(kind)))
            parts.append((found, seen.images[chosen]))
    return _score(view, parts)


def score_mixtures(view: FacemixView, requests: int, seed: int) -> UnmixingResult:
    """Score mixtures as they are, matched in the same way: the baseline for :func:`unmix`."""
    tried = _observe_requests(view, requests, seed)
    return _score(view, [(seen.rows.cpu(), seen.images) for seen in tried])


def score_plain(view: FacemixView, images: np.ndarray) -> dict[str, float]:
    """Return the model's balanced accuracy per attribute on test images without the shield."""
    parts, test = split_evenly(images, view.request), view.data.test
    return view.score_attributes((view.logits(view.features(test, part)), part) for part in parts)


def _observe_requests(view: FacemixView, requests: int, seed: int) -> Iterator[Observation]:
    return islice(view.observations(view.data.test, seed, "separation"), requests)


def run_fast_ica(mixtures: torch.Tensor, seed: int) -> torch.Tensor:
    """Unmix (n, C, H, W) by FastICA on gradients; return sources of that shape in any order.

    The true matrix is orthogonal, so rows of its inverse have length 1, which gives the scale. The
    sign is that of the mean, since a ReLU leaves no negative features.
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
        # Score the result even if it has not converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        ica.fit(samples.T)
    unmixing = ica.components_ / np.linalg.norm(ica.components_, axis=1, keepdims=True)
    found = np.einsum("ij,j...->i...", unmixing, values)
    signs = np.sign(found.mean(axis=(1, 2, 3)))
    return torch.from_numpy(found * np.where(signs == 0, 1, signs)[:, None, None, None]).float()


def match_rows(true: Rows, found: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Match found rows to true ones (best total); return their indices and correlations."""
    count = len(true)
    sizes = np.abs(np.corrcoef(true.reshape(count, -1), found.reshape(count, -1))[:count, count:])
    rows, columns = linear_sum_assignment(-sizes)
    return columns, sizes[rows, columns]


def _score(view: FacemixView, parts: list[tuple[torch.Tensor, np.ndarray]]) -> UnmixingResult:
    # Recovering what all feature maps have in common is no success.
    common = view.features(view.known, slice(0, COMMON)).cpu().mean(0, keepdim=True)
    trues = [view.features(view.data.test, images).cpu() for _, images in parts]
    founds, correlations = [], []
    for true, (found, _) in zip(trues, parts, strict=True):
        columns, sizes = match_rows((true - common).numpy(), (found - common).numpy())
        founds.append(found[columns])
        correlations.append(sizes)
    images = [images for _, images in parts]
    return UnmixingResult(
        np.concatenate(correlations),
        view.score_attributes(
            (view.logits(found), of) for found, of in zip(founds, images, strict=True)
        ),
        torch.cat(trues),
        torch.cat(founds),
        np.concatenate(images),
    )
