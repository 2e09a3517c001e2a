"""FaceMix: mix groups of examples by random orthogonal matrices and shuffle them (paper 003)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field

from pudica.clients.shields.base import NOT_FINITE, Guarantee, Shield, ShieldConfig
from pudica.clients.shields.draws import draw_orthogonal, draw_permutations
from pudica.models.randomness import Randomness

CHUNK_FEATURES = 2**13
"""Features processed together outside training: as many as fit the caches."""

SEPARABLE = (
    "an obfuscation: examples of a group are mixed, not hidden; images are not independent "
    "noise, so independent component analysis can unmix them",
    "at most against a cloud with honestly trained stages: malicious ones can reveal the matrices",
)


class MixingConfig(ShieldConfig):
    """Mix groups of examples by random orthogonal matrices: FaceMix (paper 003).

    Attributes
    ----------
    group : int, in images
        How many examples are mixed with each other, S_G of the paper.
    shuffle : bool
        Whether the mixtures of all groups of a request are shuffled.
    pad : bool
        Whether an incomplete last group is filled with decoys; otherwise it is refused.
    """

    name: Literal["mixing"] = "mixing"
    group: int = Field(default=8, ge=1, le=1024)
    shuffle: bool = True
    pad: bool = True


def group_size(config: ShieldConfig) -> int:
    """Return how many examples a shield mixes with each other; 1 if it does not mix."""
    return config.group if isinstance(config, MixingConfig) else 1


def padded_count(count: int, config: ShieldConfig) -> int:
    """Return how many examples are sent for ``count``, once the last group is filled."""
    group = group_size(config)
    return -(-count // group) * group


@dataclass(frozen=True)
class MixingKey:
    """The key that undoes one request's mixing; it is used once and never leaves the edge."""

    matrices: torch.Tensor = field(repr=False)  # (groups, S_G, S_G), orthogonal
    order: torch.Tensor = field(repr=False)  # which mixture is at each position, int64


class Mixing(Shield):
    """Eq. (4) of paper 003 in groups (§3.5), each with its own orthogonal matrix (§3.4).

    The rows of a group become ``A x``; ``Aᵀ`` is the inverse of Eq. (6). Outputs that are linear
    in the mixtures are restored exactly, and those of a model trained with mixing nearly so.
    In float32 and groups of eight, "exactly" means within some 2e-7 of the largest value. Mixtures
    sent as float16 keep 11 bits: they are restored within √S_G · 2⁻¹¹ of the largest value.
    """

    schema = MixingConfig
    has_inverse = True
    config: MixingConfig

    def _protect(
        self, tensor: torch.Tensor, randomness: Randomness
    ) -> tuple[torch.Tensor, MixingKey]:
        """Return mixtures (groups · S_G, *shape) and the key; ValueError without whole groups."""
        rows, size = self.validate_shape(tensor), self.config.group
        if len(rows) % size:
            raise ValueError(f"{len(rows)} examples are not whole groups of {size}")
        groups, order = len(rows) // size, torch.arange(len(rows))
        matrices = torch.ones(groups, 1, 1)
        if size > 1:
            matrices = draw_orthogonal((groups, size, size), randomness)
        if self.config.shuffle:
            order = draw_permutations((len(rows),), randomness)
        key = MixingKey(matrices.to(tensor.device), order.to(tensor.device))
        with torch.autocast(tensor.device.type, enabled=False):
            mixed, total = _mix(rows, key)
        # A mixture is finite only if its examples are; the sum tells without another pass.
        if not bool(total.isfinite()):
            raise ValueError(NOT_FINITE)
        return mixed, key

    def restore(self, tensor: torch.Tensor, secret: MixingKey) -> torch.Tensor:
        """Return the output of each example from those of all mixtures; else ValueError."""
        groups, size, _ = secret.matrices.shape
        if len(tensor) != groups * size:
            raise ValueError(f"{len(tensor)} rows came back of {groups * size} that were sent")
        with torch.autocast(tensor.device.type, enabled=False):
            return _unmix(tensor.float(), secret)

    def pack_secret(self, secret: MixingKey) -> dict[str, torch.Tensor]:
        """Return a key as tensors; see :meth:`Shield.pack_secret`."""
        return {"matrices": secret.matrices.cpu(), "order": secret.order.cpu()}

    def unpack_secret(self, tensors: dict[str, torch.Tensor]) -> MixingKey:
        """Return the key that tensors stand for."""
        return MixingKey(tensors["matrices"], tensors["order"])

    def guarantee(self) -> Guarantee:
        """Return that there is no guarantee, and why."""
        alone = ("an obfuscation: groups of one are not mixed, only shuffled",)
        return Guarantee("record", None, reasons=alone if self.config.group == 1 else SEPARABLE)


def _mix(rows: torch.Tensor, key: MixingKey) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``A x`` for each group, in the key's order, and the sum of all values."""
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
    """Return ``Aᵀ y`` for each group, from rows in the key's order."""
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
    """Return rows with dimensions in memory order, so that they can be flattened without a copy."""
    return rows.permute(0, 2, 3, 1) if _is_channels_last(rows) else rows


def _restore_layout(rows: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    """Return mixed rows in the shape and memory layout of the original ones."""
    if not _is_channels_last(rows):
        return flat.reshape(rows.shape)
    _, channels, height, width = rows.shape
    return flat.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def _split_features(features: int) -> list[slice]:
    """Return equally large slices that cover all features; the last two may overlap.

    Equal sizes let all slices share one buffer; allocating anew took half as long again.
    """
    size = min(features, CHUNK_FEATURES)
    starts = [*range(0, features - size, size), features - size]
    return [slice(start, start + size) for start in starts]
