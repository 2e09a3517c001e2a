"""The handwritten digits shipped with scikit-learn: nothing to download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa

from pudica.clients.data.places import DataLocation
from pudica.clients.data.source import Content, Source

_FILE = Path("datasets", "data", "digits.csv.gz")


def locate(_: DataLocation) -> Path | None:
    """Return scikit-learn's folder, without importing it."""
    spec = find_spec("sklearn")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    return folder if folder and (folder / _FILE).is_file() else None


def scan(folder: Path) -> Source:
    """Return the data set in scikit-learn's folder as a source."""
    return Source("digits", folder, (folder / _FILE,), _open)


def _open() -> Content:
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    columns = {"label": pa.array(digits.target)}
    return Content(len(images), 0, columns, [(_FILE.as_posix(), len(images))], images)
