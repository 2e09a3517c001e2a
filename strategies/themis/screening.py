"""Defences against hostile replies: screening, clipping, robust aggregation.

Measured in simulation: one gradient of 1e6 stalls Adam almost for good, and one in ten
participants that sends −1000 times its gradient reverses the descent.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum

from pudica.clients import protocol

# |m| ≤ ADAM_REACH·√v holds for Adam's moments of any gradients, by Cauchy and Schwarz, so no
# honest step moves a parameter further than this many learning rates (bias correction only
# lowers it): (1 − β₁) / √(1 − β₂) / √(1 − β₁²/β₂).
ADAM_REACH = 0.1 / np.sqrt(0.001) / np.sqrt(1 - 0.9**2 / 0.999)
MEMORY = 32


def read_update(content: RecordDict, shape: tuple[int, ...]) -> np.ndarray:
    """Return the generator's arrays in a reply, stacked.

    Parameters
    ----------
    shape : tuple of int
        (2, C, H, W), or (6, C, H, W) with Adam's moments.

    Raises
    ------
    ValueError
        Says what is wrong with it.
    """
    arrays = protocol.arrays_of(content)
    if sorted(arrays) != sorted(protocol.GENERATOR):
        raise ValueError(
            f"must send the arrays {protocol.GENERATOR}, sent {sorted(arrays) or 'none'}"
        )
    for name in protocol.GENERATOR:
        if arrays[name].shape != shape[1:]:
            raise ValueError(f"{name} must have shape {shape[1:]}, has {arrays[name].shape}")
        if arrays[name].dtype != np.float32:
            raise ValueError(f"{name} must be float32, is {arrays[name].dtype}")
    values = np.stack([arrays[name] for name in protocol.GENERATOR])
    if shape[0] > len(protocol.GENERATOR):
        moments = protocol.unpack_moments(protocol.words_of(content)[protocol.MOMENTS], shape[1:])
        values = np.concatenate([values, moments])
    protocol.check_values(values, "values")
    return values


def check_reach(values: np.ndarray, before: np.ndarray, learning_rate: float, steps: int) -> None:
    """Check that ``steps`` Adam steps can lead from one generator state to another.

    Parameters
    ----------
    values, before : ndarray of shape (6, C, H, W)
        As of :meth:`pudica.models.generator.GeneratorTraining.pack`.

    Raises
    ------
    ValueError
        They can't.
    """
    reach = 1.01 * ADAM_REACH * learning_rate * steps + 1e-6
    moved = float(np.abs(values[:2] - before[:2]).max())
    if moved > reach:
        raise ValueError(
            f"moved the generator by {moved:.3g}, {steps} Adam steps reach {reach:.3g}"
        )
    if (values[4:] < 0).any():
        raise ValueError("holds negative second moments")
    if (np.abs(values[2:4]) > 1.01 * ADAM_REACH * np.sqrt(values[4:]) + 1e-9).any():
        raise ValueError("holds moments that do not belong together")


class Clip:
    """Scales down updates whose norm is far above the usual one.

    The usual norm is the lower median of the norms of this round and of the last ``MEMORY`` before,
    so that neither a single huge reply nor half of the replies can move it.

    Parameters
    ----------
    factor : float or None
        How many times the usual norm is allowed (its square for second moments); None: any.
    history : list of list of float
        Norms seen before, one list per part of an update.
    """

    def __init__(self, factor: float | None, history: list[list[float]] | None = None) -> None:
        self.factor = factor
        self.history = [deque(norms, maxlen=MEMORY) for norms in history or []]

    def __call__(self, updates: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Return the updates, and the names of those that were clipped.

        Parameters
        ----------
        updates : dict of str to ndarray of shape (2·parts, C, H, W)
            Each part (μ and ρ; first moments; second moments) has a norm of its own.
        """
        if self.factor is None or not updates:
            return updates, []
        parts = len(next(iter(updates.values()))) // 2
        self.history = self.history or [deque(maxlen=MEMORY) for _ in range(parts)]
        clipped, names = {n: u.copy() for n, u in updates.items()}, set()
        for part, seen in enumerate(self.history):
            rows = slice(2 * part, 2 * part + 2)
            norms = {n: float(np.linalg.norm(u[rows])) for n, u in updates.items()}
            known = sorted([*seen, *norms.values()])
            # Second moments (part 2) are squares of gradients.
            limit = self.factor ** (2 if part == 2 else 1) * known[(len(known) - 1) // 2]
            for name, norm in norms.items():
                if norm > limit:
                    clipped[name][rows] *= limit / norm
                    names.add(name)
                seen.append(min(norm, limit))
        return clipped, sorted(names)


def combine(rule: str, updates: list[np.ndarray], malicious: int) -> np.ndarray:
    """Aggregate updates of one shape, in node order; at most ``malicious`` are hostile.

    Parameters
    ----------
    rule : {"mean", "median", "trimmed-mean", "krum"}
        The last two are Flower's.
    """
    stacked = np.stack(updates)
    if rule == "median":
        return np.median(stacked, axis=0).astype(stacked.dtype)  # type: ignore[no-any-return]
    if rule == "trimmed-mean":
        cut = min(malicious, (len(updates) - 1) // 2)
        beta = (cut + 1e-6) / len(updates)  # trim_mean rounds beta·n down
        return trim_mean(stacked, beta).astype(stacked.dtype)  # type: ignore[no-any-return]
    if rule == "krum":
        records = [RecordDict({"arrays": ArrayRecord({"values": Array(u)})}) for u in updates]
        chosen = select_multikrum(records, malicious, 1)[0]
        return protocol.arrays_of(chosen)["values"]
    return stacked.mean(axis=0)  # type: ignore[no-any-return]
