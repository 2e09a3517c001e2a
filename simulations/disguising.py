"""``pudica disguise``: disguising a data set on disk, and restoring it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pudica.clients.data import dataset_names
from pudica.clients.data.cache import compute_fingerprint
from pudica.clients.data.decoding import Channels
from pudica.clients.data.disguised import (
    MANIFEST,
    DisguiseRequest,
    disguise_dataset,
    restore_dataset,
)
from pudica.clients.data.errors import DataError
from pudica.clients.data.folders import scan_image_folder
from pudica.clients.data.parquet import locate_parquet, scan_parquet
from pudica.clients.data.registry import find_source, lookup
from pudica.clients.data.source import DataLocation, Source, cache_root, data_root
from pudica.clients.shields.disguises import Key, KeyedDisguise
from pudica.models.errors import RequestError
from pudica.models.files import DISK_FULL
from pudica.simulations.keys import describe_inverse
from pudica.simulations.progress import show_progress

RETRY_HINT = "what was written is kept: free some space, and run the same command again"
OPTIONS = {"data.image_size": "--image-size", "data.channels": "--channels"}


def disguise(
    images: Path,
    out: Path,
    key: Path,
    labels: list[str],
    size: int | None,
    channels: Channels | None,
) -> list[str]:
    """Disguise a data set, or resume that; return lines that describe the result.

    Parameters
    ----------
    images : Path
        Class folders of images, a parquet file, or a folder of parquet files; or the name of an
        available data set.
    labels : list of str
        Columns to keep besides the image.
    size, channels : int or None
        Image size and channels to convert to.

    Raises
    ------
    RequestError, DataError
        If something is missing, does not fit, or can't be written.
    """
    own = KeyedDisguise(Key.load(key))
    if not images.exists() and str(images) in dataset_names():
        spec = lookup(str(images))
        source = find_source(spec, DataLocation(data_root()), download=False)
        size, channels = size or spec.image_size, channels or spec.channels
        labels = labels or [spec.label]
    else:
        source = _open_source(images)
    if out.absolute().is_relative_to(images.absolute()):
        raise RequestError(f"{out} is inside {images}, which would be changed")
    index = cache_root() / "index"
    index.mkdir(parents=True, exist_ok=True)
    request = DisguiseRequest(
        source, compute_fingerprint(source, index), own, labels, size, channels
    )
    with _explain_write_errors(out), _show_progress("disguising") as report:
        manifest = disguise_dataset(request, out, report)
    left_out = [name for name in source.open().columns.column_names if name not in manifest.labels]
    return [
        f"{manifest.train + manifest.test:,} images ({manifest.train:,} for training) in {out}",
        f"disguise     {manifest.disguise}",
        f"fingerprint  {manifest.key}",
        f"labels       {', '.join(manifest.labels)}"
        + (f"; left out: {', '.join(left_out)}" if left_out else ""),
        f"undone by    {describe_inverse(own)}",
        f"protects     {own.guarantee().reasons[0]}",
        f"use it by    --set data.name=disguised --set {shlex.quote(f'data.path={out}')}",
    ]


def restore(disguised: Path, out: Path, key: Path) -> list[str]:
    """Restore a disguised data set, or resume that; return lines that describe the result.

    Raises
    ------
    RequestError, DataError
        As for :func:`disguise`; or if the key is wrong, or the disguise can't be undone.
    """
    own = KeyedDisguise(Key.load(key))
    with _explain_write_errors(out), _show_progress("restoring") as report:
        original = restore_dataset(disguised, own, out, report)
    count = original.train + original.test
    return [
        f"{count:,} images, identical to the originals in every pixel, in {out}",
        f"use it by    --set data.name={original.layout} --set {shlex.quote(f'data.path={out}')}",
    ]


def _open_source(images: Path) -> Source:
    """Open the images at a path, whatever their format."""
    location = DataLocation(images.parent, images)
    if not images.exists():
        raise DataError(f"there is no {images}, and no data set of that name in `pudica list`")
    if (images / MANIFEST).exists():
        raise RequestError(f"{images} is disguised already; --undo brings it back")
    if locate_parquet(location, (".",)):
        return scan_parquet(images)
    return scan_image_folder(images)


@contextmanager
def _show_progress(stage: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callable that shows how many images are done, of how many."""
    with show_progress() as progress:
        state = {"stage": stage, "unit": "image"}
        yield lambda done, total: progress.update({**state, "done": done, "total": total})


@contextmanager
def _explain_write_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        text = str(error)
        for setting, option in OPTIONS.items():
            text = text.replace(setting, option)
        raise DataError(text) from error
    except OSError as error:
        full = error.errno in DISK_FULL
        raise RequestError(
            f"can't write in {out}: {error.strerror or error}" + (f"; {RETRY_HINT}" if full else "")
        ) from error
