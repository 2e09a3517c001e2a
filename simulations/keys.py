"""``pudica key``: the keys of image disguises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pudica.analysis.breaks import draw_breaks
from pudica.analysis.drawing import own_look, save
from pudica.clients.data import DataConfig, load
from pudica.clients.shields.disguises import Disguise, Key
from pudica.clients.shields.disguises.breaks import run_attacks, standardise
from pudica.models.errors import RequestError
from pudica.models.randomness import SystemGenerator, derive
from pudica.strategies.loading import validated


def create_key(notation: str, shape: tuple[int, int, int], out: Path, seed: int | None) -> Key:
    """Draw a key and write it to a new file.

    Parameters
    ----------
    notation : str
        Of the disguise, as ``MAT(256)+MMT(10)``.
    shape : tuple of int
        Channels, height and width of an image.
    seed : int or None
        None: the system's randomness.

    Raises
    ------
    RequestError
        If the notation is wrong or does not fit, or the file is there already.
    """
    if seed is None:
        key = Key.new(notation, shape, SystemGenerator())
    else:  # as of `data.shield` in a run of that seed
        key = Key.from_seed(notation, shape, derive(seed, "data"))
    key.save(out)
    return key


def describe_key(key: Key) -> list[str]:
    """Return what may be shown of a key, line by line."""
    disguise = Disguise(key)
    kinds = {"pixels": "pixels", "integers": "whole numbers", "numbers": "real numbers"}
    span = disguise.span
    values = f"{kinds[span.kind]} from {span.low:,} to {span.high:,}"
    return [
        f"disguise     {key.notation}",
        f"images       {'x'.join(map(str, key.shape))}, become {values}",
        f"the way back {describe_inverse(disguise)}",
        f"fingerprint  {key.fingerprint}",
        f"protects     {disguise.guarantee().reasons[0]}",
    ]


def describe_inverse(disguise: Disguise) -> str:
    """Say whether there is one, and how."""
    lost = disguise.loss_description
    return f"none: {lost}" if lost else "with this key"


def load_images(data: str, settings: list[str], count: int) -> np.ndarray:
    """Return training images of a data set, uint8 of shape (N, C, H, W).

    Parameters
    ----------
    data : str
        Name of the set.
    settings : list of str
        ``KEY=VALUE``, of the ``data`` section.
    count : int
        The most.

    Raises
    ------
    RequestError, DataError
        If the data are not here, or a setting is wrong.
    """
    config = validated(DataConfig, {"name": data}, "data", settings)
    if config.shield is not None:
        raise RequestError("data: shield: these images are disguised with the key that is given")
    splits = load(config, seed=0)
    if splits.key:
        raise RequestError(f"data: these images are disguised already, with the key {splits.key}")
    train = splits.train
    found: np.ndarray = train.plain(slice(0, count)).numpy()
    return found


def run_attack(key: Key, plain: np.ndarray) -> tuple[pd.DataFrame, str]:
    """Disguise images, attack them without the key, and say how far that comes.

    Parameters
    ----------
    plain : uint8 ndarray of shape (N, C, H, W)

    Raises
    ------
    RequestError
        If it is the key of something else than MAT, MMT and Rise, or for other images.
    """
    disguise = Disguise(key)
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
    apart = np.abs(standardise(disguised) - standardise(plain)).max()
    return pd.DataFrame(rows), (
        f"z-scores of each pixel over {len(plain):,} images, disguised and plain, differ by at "
        f"most {apart:.1g}: no key is needed to compare them."
    )


def draw_attack(key: Key, plain: np.ndarray, picture: Path) -> Path:
    """Draw images plain, disguised and undone into a PNG; arguments as of :func:`run_attack`.

    Raises
    ------
    RequestError
        If it can't be written.
    """
    try:
        with own_look():
            return save(draw_breaks(Disguise(key), plain), picture)
    except OSError as error:
        raise RequestError(f"--picture: can't write {picture}: {error.strerror}") from error
