"""A model in three stages with a shield around the middle one, as in paper 003."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from pudica import models
from pudica.clients.shields import ShieldConfig, build
from pudica.clients.shields.base import Shield
from pudica.clients.shields.decoys import fill_groups
from pudica.clients.shields.front import activation_shape
from pudica.models.anonymiser import Anonymiser
from pudica.models.attributes import LOGITS
from pudica.models.cut import INPUT, OUTPUT, Cutter
from pudica.models.randomness import Randomness, temporary_seed

ANONYMISER = "anonymiser"
"""Name that stands for a layer: the first stage is then an anonymiser in front of the model."""


class StagedModel(nn.Module):
    """Eq. (2) of paper 003: the edge's ``pre`` and ``post``, and the cloud's shielded ``main``.

    Attributes
    ----------
    randomness : Generator or SystemGenerator or None
        Source of the shield's next key; None turns the shield off.
    """

    def __init__(self, pre: nn.Module, main: nn.Module, post: nn.Module, shield: Shield) -> None:
        super().__init__()
        self.pre, self.main, self.post = pre, main, post
        self.shield = shield
        self.randomness: Randomness | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images (B, C, H, W); with ``randomness``, through the shield."""
        if self.randomness is None:
            return self.post(self.main(self.pre(x)))  # type: ignore[no-any-return]
        features = self.pre(fill_groups(x, self.shield.config, self.randomness))
        sent, secret = self.shield.protect(features, self.randomness)
        restored = self.shield.restore(self.main(sent), secret)[: len(x)]
        return self.post(restored)  # type: ignore[no-any-return]

    @property
    def edge_stages(self) -> nn.ModuleList:
        """The stages that the edge runs: ``pre`` and ``post``."""
        return nn.ModuleList([self.pre, self.post])


def build_staged(
    model: str,
    attributes: int,
    image: tuple[int, int, int],
    stages: tuple[str, str],
    shield: ShieldConfig,
    batch: int,
    seed: int = 0,
) -> StagedModel:
    """Build a model, cut it into stages, and put a shield around the middle one.

    Parameters
    ----------
    attributes : int
        Number of binary attributes to predict.
    image : tuple of int
        Channels, height and width.
    stages : (str, str)
        The layers after which ``pre`` and ``main`` end, as in :meth:`Cutter.cut_stages`. With
        ``("output", "output")`` the whole model is ``pre``; with ``("anonymiser", "output")``
        an anonymiser is ``pre`` and the model is ``main``.
    batch : int
        The maximum number of examples protected together.

    Raises
    ------
    RequestError
        If the model is unknown or can't be cut there, or the shield does not fit.
    """
    built = models.build_for(model, image, num_classes=LOGITS * attributes, seed=seed)
    parts: tuple[nn.Module, nn.Module, nn.Module] = (built, nn.Identity(), nn.Identity())
    if stages[0] == ANONYMISER:
        with temporary_seed(seed):
            parts = (Anonymiser(image[0]), built, nn.Identity())
    elif stages[0] != OUTPUT:
        parts = Cutter(built).cut_stages(*stages)
    pre, main, post = parts
    shape = activation_shape(pre, image) if stages[0] != INPUT else image
    return StagedModel(pre, main, post, build(shield, shape, batch))


build_staged_cached = lru_cache(maxsize=2)(build_staged)
"""Builds a staged model once per process; its nodes share it, as weights come with messages."""
