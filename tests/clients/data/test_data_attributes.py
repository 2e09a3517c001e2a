"""Binary attributes from the columns of a data set."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pudica.clients.data import DataConfig, DataError, load

COUNT = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a set with columns of all kinds."""
    sink = BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(sink, "PNG")
    rows = range(COUNT)
    table = pa.table(
        {
            "image": [{"bytes": sink.getvalue(), "path": None}] * COUNT,
            "age": [2 * row for row in rows],
            "glasses": [row % 3 == 0 for row in rows],
            "smiling": [row % 2 for row in rows],
            "hair": [("brown", "black", "no: none")[row % 3] for row in rows],
            "always": [1] * COUNT,
            "gaps": [None if row == 7 else 1 for row in rows],
            "score": [0.5] * COUNT,
        }
    )
    pq.write_table(table, tmp_path / "all.parquet")
    return tmp_path


def attributes(folder: Path, *wanted: str) -> tuple[np.ndarray, list[str]]:
    config = DataConfig(name="parquet", path=folder, label="smiling", attributes=wanted)
    splits = load(config, seed=0)
    parts = (splits.train, splits.validation, splits.test)
    rows = np.concatenate([part.rows for part in parts])
    found = np.concatenate([part.attributes for part in parts])
    return found[np.argsort(rows)], splits.attributes


def test_columns_values_and_ranges(folder: Path) -> None:
    wanted = ("glasses", "smiling", "hair=black", "hair=no: none", "age:10-20", "age=4")
    found, names = attributes(folder, *wanted)
    rows = np.arange(COUNT)
    assert names == list(wanted)
    expected = [
        rows % 3 == 0,
        rows % 2,
        rows % 3 == 1,
        rows % 3 == 2,
        (rows >= 5) & (rows <= 10),
        rows == 2,
    ]
    np.testing.assert_array_equal(found, np.stack(expected, axis=1))


def test_a_star_is_every_column_that_says_yes_or_no(folder: Path) -> None:
    with pytest.raises(DataError, match="every image has 'always'"):
        attributes(folder, "*")
    table = pq.read_table(folder / "all.parquet").drop_columns(["always"])
    pq.write_table(table, folder / "all.parquet")
    assert attributes(folder, "*", "hair=brown")[1] == ["glasses", "smiling", "hair=brown"]


def test_numbers_of_classes_stand_for_them() -> None:
    config = DataConfig(name="digits", attributes=("label=3", "label:5-9"))
    splits = load(config, seed=0)
    np.testing.assert_array_equal(splits.test.attributes[:, 0], splits.test.labels == 3)
    np.testing.assert_array_equal(splits.test.attributes[:, 1], splits.test.labels >= 5)


def test_parts_of_parts_keep_their_attributes() -> None:
    splits = load(DataConfig(name="digits", attributes=("label=3",)), seed=0)
    chosen = splits.train.subset(np.array([5, 2]))
    np.testing.assert_array_equal(chosen.attributes, splits.train.attributes[[5, 2]])


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (("beard",), "no column 'beard'.*age, glasses"),
        (("age",), "does not say yes or no, it holds 0, 10, 12.*'age:LOW-HIGH'"),
        (("hair",), "does not say yes or no, it holds black, brown"),
        (("hair=red",), "no image has hair=red.*black, brown"),
        (("hair:1-2",), "holds string, not numbers"),
        (("age:x",), "makes no sense; allowed: COLUMN, COLUMN=VALUE"),
        (("smiling", "smiling"), "smiling is named twice"),
        (("age:100-200",), "no image has 'age:100-200'"),
        (("age:20-10",), "20 is more than 10"),
        (("always",), "every image has 'always'"),
        (("gaps",), "'gaps': the value is null"),
        (("score",), "no column 'score'"),
    ],
)
def test_what_is_no_attribute_says_why(folder: Path, wanted: tuple[str, ...], why: str) -> None:
    with pytest.raises(DataError, match=why):
        attributes(folder, *wanted)
