"""The real sets, where they are: each decoded once for all tests of a run."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pudica.clients.data import DataConfig, catalogue, load

ROOT = Path(os.environ.get("PUDICA_DATA") or "nowhere")
FOLDERS = {
    "mnist": "mnist",
    "cifar10": "cifar10-jpeg",
    "utkface": "utkface-64",
    "att-faces": "att-faces",
}

pytestmark = pytest.mark.skipif(
    not all((ROOT / folder).is_dir() for folder in FOLDERS.values()),
    reason="PUDICA_DATA does not point to a folder with mnist, cifar10-jpeg, utkface-64, att-faces",
)


@pytest.fixture
def shared_cache(tmp_path_factory, monkeypatch) -> None:
    """Use one cache for all tests of a run, also for those in other workers."""
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    monkeypatch.setenv("PUDICA_CACHE", str(run / "real-cache"))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
@pytest.mark.parametrize(
    ("name", "shape", "classes", "sizes"),
    [
        ("mnist", (1, 28, 28), 10, (48_000, 12_000, 10_000)),
        ("cifar10", (3, 32, 32), 10, (40_000, 10_000, 10_000)),
        ("utkface", (3, 64, 64), 2, (12_642, 3_161, 3_161)),
        ("att-faces", (1, 64, 64), 40, (268, 66, 66)),
    ],
)
def test_real_set(name, shape, classes, sizes):
    splits = load(DataConfig(name=name, root=ROOT), seed=0)
    assert splits.shape == shape
    assert splits.num_classes == classes
    assert (len(splits.train), len(splits.validation), len(splits.test)) == sizes
    limited = load(DataConfig(name=name, root=ROOT, limit=100), seed=0)
    assert len(limited.train) == 100
    _check_first_rows(splits, name)


def _check_first_rows(splits, name: str) -> None:
    """Compare the last part's first rows with the file, read without this package."""
    file = ROOT / FOLDERS[name] / ("all.parquet" if name == "att-faces" else "test.parquet")
    rows = pq.read_table(file).slice(0, 5).to_pylist()
    column = {"utkface": "gender", "att-faces": "identity"}.get(name, "label")
    part = splits.train if name == "att-faces" else splits.test
    start = 0 if name == "att-faces" else int(part.rows[0])
    for offset, row in enumerate(rows):
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        image = image.convert("L" if splits.shape[0] == 1 else "RGB").resize(splits.shape[1:])
        stored = part.images[start + offset].transpose(1, 2, 0).squeeze()
        if name != "att-faces":
            assert np.array_equal(stored, np.asarray(image))
            assert part.labels[offset] == row[column]
        else:
            assert np.abs(stored.astype(int) - np.asarray(image)).mean() < 8


def test_catalogue_finds_the_folders():
    present = {entry.name: entry.where for entry in catalogue(ROOT) if entry.present}
    assert {name: str(ROOT / folder) for name, folder in FOLDERS.items()}.items() <= present.items()
