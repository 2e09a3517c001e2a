"""``pudica key``: keys of image disguises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pudica.analysis.dlmt import draw_breaks
from pudica.analysis.drawing import plot_style, save
from pudica.clients.data import DataConfig, load
from pudica.clients.shields.disguises import Key, KeyedDisguise, describe_loss
from pudica.clients.shields.disguises.breaks import run_attacks, standardise
from pudica.models.errors import RequestError
from pudica.models.randomness import SystemGenerator, derive
from pudica.strategies.loading import validated


def create_key(notation: str, shape: tuple[int, int, int], out: Path, seed: int | None) -> Key:
    """Create a key for images of a shape, and write it to a new file.

    Without a seed the system's randomness is used.

    Raises
    ------
    RequestError
        If the notation is wrong or does not fit, or the file exists already.
    """
    if seed is None:
        key = Key.new(notation, shape, SystemGenerator())
    else:  # the same key as that of `data.shield` in a run with that seed
        key = Key.from_seed(notation, shape, derive(seed, "data"))
    key.save(out)
    return key


def describe_key(key: Key) -> list[str]:
    """Return lines that describe a key without revealing it."""
    disguise = KeyedDisguise(key)
    kinds = {"pixels": "pixels", "integers": "whole numbers", "numbers": "real numbers"}
    span = disguise.span
    values = f"{kinds[span.kind]} from {span.low:,} to {span.high:,}"
    return [
        f"disguise     {key.notation}",
        f"images       {'x'.join(map(str, key.shape))}, become {values}",
        f"undone by    {describe_inverse(disguise)}",
        f"fingerprint  {key.fingerprint}",
        f"protects     {disguise.guarantee().reasons[0]}",
    ]


def describe_inverse(disguise: KeyedDisguise) -> str:
    """Describe how the disguise can be undone, if at all."""
    lost = describe_loss(disguise.key.steps)
    return f"nothing: {lost}" if lost else "this key"


def load_images(data: str, settings: list[str], count: int) -> np.ndarray:
    """Return at most ``count`` training images of a data set, uint8 of shape (N, C, H, W).

    Raises
    ------
    RequestError, DataError
        If the data are not available, or a setting ``KEY=VALUE`` is not valid.
    """
    config = validated(DataConfig, {"name": data}, "data", settings)
    if config.shield is not None:
        raise RequestError("data: shield: the images are disguised with the key given here")
    splits = load(config, seed=0)
    if splits.key:
        raise RequestError(f"data: these images are disguised already, with the key {splits.key}")
    images: np.ndarray = splits.train.plain_images(slice(0, count)).numpy()
    return images


def run_attack(key: Key, plain: np.ndarray) -> tuple[pd.DataFrame, str]:
    """Disguise images (N, C, H, W) and attack them without the key; return a table and a remark.

    Raises
    ------
    RequestError
        If the key is not for MAT, MMT and Rise, or for images of another shape.
    """
    disguise = KeyedDisguise(key)
    rows = [
        {
            "attack": each.attack,
            "images seen": each.images,
            "key found %": 100 * each.found,
            "pixels shown exactly %": 100 * each.pixels,
            "mean error": each.error,
        }
        for each in run_attacks(disguise, plain)
    ]
    disguised = disguise.protect(torch.from_numpy(plain)).numpy()
    difference = np.abs(standardise(disguised) - standardise(plain)).max()
    return pd.DataFrame(rows), (
        f"z-scores of each pixel over {len(plain):,} images, disguised and plain, differ by at "
        f"most {difference:.1g}: no key is needed to compare them."
    )


def draw_attack(key: Key, plain: np.ndarray, picture: Path) -> Path:
    """Draw plain, disguised and recovered images into a PNG file; see :func:`run_attack`."""
    try:
        with plot_style():
            return save(draw_breaks(KeyedDisguise(key), plain), picture)
    except OSError as error:
        raise RequestError(f"--picture: can't write {picture}: {error.strerror}") from error
