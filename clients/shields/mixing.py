"""FaceMix: groups of examples mixed by random orthogonal matrices, and shuffled (paper 003)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field

from pudica.clients.shields.base import NOT_FINITE, Guarantee, Shield, ShieldConfig
from pudica.clients.shields.draws import draw_orthogonal, draw_permutations
from pudica.models.randomness import Randomness

CHUNK_FEATURES = 2**13
"""Features that are worked on together where nothing is trained: what fits the caches."""

SEPARABLE = (
    "an obfuscation: examples of a group are mixed, not hidden; images are not independent "
    "noise, so independent component analysis can take them apart",
    "at most against a cloud that handed out honestly trained stages: others can be made to show "
    "the matrices",
)


class MixingConfig(ShieldConfig):
    """How examples are mixed.

    Attributes
    ----------
    group : int
        Examples that are mixed with each other, S_G. 1: none are.
    shuffle : bool
        Whether the mixtures of all groups are put in another order.
    pad : bool
        Whether a last group that is not full is filled with decoys
        (:mod:`pudica.clients.shields.decoys`). Otherwise it is an error.
    """

    name: Literal["mixing"] = "mixing"
    group: int = Field(default=8, ge=1, le=1024)
    shuffle: bool = True
    pad: bool = True


def group_size(config: ShieldConfig) -> int:
    """Return how many examples a shield mixes with each other; 1: it does not mix."""
    return config.group if isinstance(config, MixingConfig) else 1


def padded_count(count: int, config: ShieldConfig) -> int:
    """Return how many examples cross in place of so many, once the last group is full."""
    group = group_size(config)
    return -(-count // group) * group


@dataclass(frozen=True)
class MixingKey:
    """What undoes one request's mixing, and is used once: it never leaves the edge.

    Attributes
    ----------
    matrices : Tensor of shape (groups, S_G, S_G)
        Orthogonal.
    order : int64 tensor of shape (groups · S_G,)
        Which mixture stands at each place.
    """

    matrices: torch.Tensor = field(repr=False)
    order: torch.Tensor = field(repr=False)


class Mixing(Shield):
    """Eq. (4) of paper 003 in groups (§3.5), each with an orthogonal matrix of its own (§3.4).

    Rows of a group become ``A x``; ``Aᵀ`` is the inverse of Eq. (6). What comes back is restored
    exactly if it is linear in what was sent, and nearly so if a model was trained with mixing.
    In groups of eight exactly is within some 2e-7 of the largest value in float32. Mixtures that
    travel as float16 keep 11 bits: what is restored of them is within √S_G · 2⁻¹¹ of the largest.
    """

    config: MixingConfig

    def protect(
        self, tensor: torch.Tensor, randomness: Randomness
    ) -> tuple[torch.Tensor, MixingKey]:
        """Return mixtures, (groups · S_G, *shape), and the key; see :meth:`Shield.protect`.

        Raises
        ------
        ValueError
            Also where examples are no whole groups; see :mod:`pudica.clients.shields.decoys`.
        """
        rows, size = self.validate_shape(tensor), self.config.group
        if len(rows) % size:
            raise ValueError(f"{len(rows)} examples are no whole groups of {size}")
        matrices = self._matrices(len(rows) // size, randomness)
        order = (
            draw_permutations((len(rows),), randomness) if self.config.shuffle else range(len(rows))
        )
        key = MixingKey(matrices.to(tensor.device), torch.as_tensor(order, device=tensor.device))
        with torch.autocast(tensor.device.type, enabled=False):
            mixed, total = _mix(rows, key)
        # A mixture is finite if all in it is; a sum in passing tells without another look at all.
        if not bool(total.isfinite()):
            raise ValueError(NOT_FINITE)
        return mixed, key

    def restore(self, tensor: torch.Tensor, secret: MixingKey) -> torch.Tensor:
        """Return what came back of each example, (B, …), from that of the mixtures.

        Raises
        ------
        ValueError
            If there are not as many rows as were sent.
        """
        groups, size, _ = secret.matrices.shape
        if len(tensor) != groups * size:
            raise ValueError(f"{len(tensor)} rows came back of {groups * size} that were sent")
        with torch.autocast(tensor.device.type, enabled=False):
            return _unmix(tensor.float(), secret)

    def guarantee(self) -> Guarantee:
        """Return that there is none, and why."""
        alone = ("an obfuscation: groups of one are not mixed, only shuffled",)
        return Guarantee("record", None, reasons=alone if self.config.group == 1 else SEPARABLE)

    def _matrices(self, groups: int, randomness: Randomness) -> torch.Tensor:
        size = self.config.group
        if size == 1:
            return torch.ones(groups, 1, 1)
        return draw_orthogonal((groups, size, size), randomness)


def _mix(rows: torch.Tensor, key: MixingKey) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``A x`` of each group, in the key's order, and the sum of all values."""
    flat = _to_memory_order(rows).reshape(*key.matrices.shape[:2], -1)
    if torch.is_grad_enabled() and rows.requires_grad:
        together = torch.bmm(key.matrices, flat).flatten(0, 1)[key.order]
        return _restore_layout(rows, together), together.detach().sum()
    out, parts = flat.new_empty(len(rows), flat.shape[2]), _split_features(flat.shape[2])
    mixed = torch.empty_like(flat[:, :, parts[0]], memory_format=torch.contiguous_format)
    total = flat.new_zeros(())
    for part in parts:
        torch.bmm(key.matrices, flat[:, :, part], out=mixed)
        torch.index_select(mixed.flatten(0, 1), 0, key.order, out=out[:, part])
        total += mixed.sum()
    return _restore_layout(rows, out), total


def _unmix(rows: torch.Tensor, key: MixingKey) -> torch.Tensor:
    """Return ``Aᵀ y`` of each group, from rows in the key's order."""
    matrices, places = key.matrices.mT.contiguous(), key.order.argsort()
    groups = matrices.shape[:2]
    flat = _to_memory_order(rows).reshape(len(rows), -1)
    if torch.is_grad_enabled() and rows.requires_grad:
        ordered = flat[places].unflatten(0, groups)
        return _restore_layout(rows, torch.bmm(matrices, ordered).flatten(0, 1))
    out, parts = flat.new_empty(*groups, flat.shape[1]), _split_features(flat.shape[1])
    ordered = torch.empty_like(flat[:, parts[0]], memory_format=torch.contiguous_format)
    restored = ordered.new_empty(*groups, ordered.shape[1])
    for part in parts:
        torch.index_select(flat[:, part], 0, places, out=ordered)
        torch.bmm(matrices, ordered.view_as(restored), out=restored)
        out[:, :, part] = restored
    return _restore_layout(rows, out.flatten(0, 1))


def _is_channels_last(rows: torch.Tensor) -> bool:
    return rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last)


def _to_memory_order(rows: torch.Tensor) -> torch.Tensor:
    """Return rows with their dimensions as they lie in memory: each is mixed as a whole."""
    return rows.permute(0, 2, 3, 1) if _is_channels_last(rows) else rows


def _restore_layout(rows: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    """Return what was made of rows in their shape and layout."""
    if not _is_channels_last(rows):
        return flat.reshape(rows.shape)
    _, channels, height, width = rows.shape
    return flat.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def _split_features(features: int) -> list[slice]:
    """Return slices of all features, alike in size: the last may begin before the one before ends.

    So they share room that is there already; asking the system for it anew took half as long again.
    """
    size = min(features, CHUNK_FEATURES)
    starts = [*range(0, features - size, size), features - size]
    return [slice(start, start + size) for start in starts]
