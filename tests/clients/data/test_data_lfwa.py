"""LFWA: attributes and splits of LFW from MATLAB's files, in every format they may have."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lfwa_files import ATTRIBUTES, as_cells, build_variables, image_names, write_lfwa

from pudica.clients.data import DataConfig, DataError, Splits, catalogue, load
from pudica.clients.data.matlab import read_matlab

STEP = 20  # of an image's value: JPEG keeps these apart
VERSIONS = ["7", "7.3"]
DRAWN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
ALLOWED = "Allowed: version 7 (save with '-v7') and 7.3 ('-v7.3')"


def require_reader(version: str) -> None:
    if version == "7.3":
        pytest.importorskip("h5py")


@pytest.fixture
def write(make: Any) -> Callable[..., Path]:
    """Write LFWA with images of the values 0, 20, 40, …; return the root of all sets."""

    def written(folder: str = "lfw", **options: Any) -> Path:
        for number, name in enumerate(write_lfwa(make.root, **options)):
            make.image(name.replace("/lfw/", f"/{folder}/"), STEP * number, size=(20, 20))
        return make.root

    return written


def rows(part: Any) -> list[int]:
    """Return which image each is, from 0."""
    return (part.pixels(slice(None))[:, 0, 0, 0] * 255 / STEP).round().int().tolist()


def lfwa(root: Path, **options: Any) -> Splits:
    return load(DataConfig(name="lfwa", root=root, **options), seed=0)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("separator", ["\\", "/"])
def test_attributes_labels_and_the_authors_split(
    write: Callable[..., Path], version: str, separator: str
) -> None:
    require_reader(version)
    root = write(version=version, separator=separator)
    splits = lfwa(root, attributes=["*"])
    assert splits.shape == (3, 64, 64)
    assert splits.class_names == ["no", "yes"]
    assert splits.attributes == list(ATTRIBUTES)
    assert splits.has_own_test
    assert rows(splits.test) == [9, 10, 11]
    assert sorted(rows(splits.train) + rows(splits.validation)) == [*range(9)]
    assert len(splits.validation) == 2
    for part in (splits.train, splits.validation, splits.test):
        which = np.array(rows(part))
        assert part.labels.tolist() == (which % 2).tolist()
        expected = np.stack([which % 3 == 0, which % 2 == 1, which % 5 < 3], axis=1)
        np.testing.assert_array_equal(part.attributes, expected)
    assert not any("left out" in note for note in splits.notes)
    assert {entry.name for entry in catalogue(root) if entry.present} == {"digits", "lfwa"}


@pytest.mark.parametrize("folder", ["lfw-deepfunneled", "lfw_funneled"])
def test_aligned_copies_of_the_images_serve_as_well(
    write: Callable[..., Path], folder: str
) -> None:
    assert rows(lfwa(write(folder)).test) == [9, 10, 11]


def test_who_is_shown_is_a_label_too(write: Callable[..., Path]) -> None:
    root = write()
    splits = lfwa(root, label="identity", split="4:1:1")
    assert splits.class_names == ["Aaron_Eckhart", "Bo_Li", "Zoë_Ball"]
    assert splits.train.labels.tolist() == [row % 3 for row in rows(splits.train)]


def test_attributes_may_be_spelt_with_spaces(write: Callable[..., Path]) -> None:
    spaced = as_cells([name.replace("_", " ") + " " for name in ATTRIBUTES])
    assert lfwa(write(AttrName=spaced), attributes=["*"]).attributes == list(ATTRIBUTES)


def test_what_is_left_out_is_counted_and_told(write: Callable[..., Path], make: Any) -> None:
    train = np.arange(1.0, 8)[:, None]
    root = write(indices_img_train=train)
    for number in range(7):
        make.image(f"lfwa/lfw/Extra_One/Extra_One_{number:04d}.jpg")
    make.image("lfwa/lfw/Thumbs.db.png").rename(make.root / "lfwa/lfw/Thumbs.db")
    splits = lfwa(root)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 10
    told = "\n".join(splits.notes)
    assert "left out, without attributes: 7 images (Extra_One/Extra_One_0000.jpg, " in told
    assert "Extra_One_0004.jpg, …)" in told
    unlisted = ", ".join(image_names()[7:9])
    assert f"in no list of indices_train_test.mat: 2 images ({unlisted})" in told
    assert "no part of the data: Thumbs.db" in told
    assert lfwa(root).notes == splits.notes, "from the cache"


@settings(DRAWN, max_examples=10)
@given(order=st.permutations(range(12)), test=st.integers(1, 10), rowwise=st.booleans())
def test_any_order_of_the_lists_gives_the_same_images(
    write: Callable[..., Path], order: list[int], test: int, rowwise: bool
) -> None:
    numbers = np.array(order, np.float64)[:, None] + 1
    parts = {"indices_img_test": numbers[:test], "indices_img_train": numbers[test:]}
    splits = lfwa(write(**{k: v.T if rowwise else v for k, v in parts.items()}), split="train-test")
    assert sorted(rows(splits.test)) == sorted(order[:test])
    assert sorted(rows(splits.train)) == sorted(order[test:])


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        lfwa(root, **options)
    return str(caught.value)


def test_a_missing_image_is_named(write: Callable[..., Path]) -> None:
    root = write()
    gone = [root / "lfwa/lfw" / image_names()[row] for row in (4, 10)]
    for file in gone:
        file.unlink()
    message = refused(root)
    assert f"{root}/lfwa/lfw lacks '{image_names()[4]}', '{image_names()[10]}' (2 such)" in message


def test_an_attribute_that_there_is_not_is_answered_by_those_like_it(
    write: Callable[..., Path],
) -> None:
    root = write()
    for wrong in ("Yuong", "young"):
        message = refused(root, attributes=[wrong])
        assert f"no column '{wrong}' in {root}/lfwa. Did you mean 'Young'?" in message
        assert all(name in message for name in ATTRIBUTES)
    assert "Did you mean 'Male'? Set data.label" in refused(root, label="male")


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


ANSWERS = np.tile([[0.0, 1.0]], (12, 2))[:, :3]
ODD = ANSWERS.copy()
ODD[4, 1] = 2


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"indices_img_train": column(1, 13)}, "has 13; allowed: whole numbers from 1 to 12"),
        ({"indices_img_test": column(0)}, "has 0; allowed: whole numbers from 1 to 12"),
        ({"indices_img_test": column(-1)}, "has -1; allowed: whole"),
        ({"indices_img_test": column(1.5)}, "has 1.5; allowed: whole"),
        ({"indices_img_test": column(np.nan)}, "has nan; allowed: whole"),
        ({"indices_img_test": column()}, "indices_img_test is empty"),
        ({"indices_img_train": column(2, 3, 2)}, "indices_img_train has 2 twice"),
        ({"indices_img_test": column(5)}, "5 is in indices_img_train and in indices_img_test"),
        ({"indices_img_test": None}, "no variable 'indices_img_test'; it has: indices_"),
        ({"indices_img_test": as_cells(["a"])}, "indices_img_test must hold numbers"),
        ({"label": ANSWERS.T}, "label is of shape 3x12; it must be 12x3"),
        ({"label": ODD}, "label of 'Bo_Li/Bo_Li_0002.jpg', 'Male', is 2; allowed: 0, 1"),
        ({"label": ANSWERS * np.nan}, "is nan; allowed: 0, 1"),
        ({"label": None}, "no variable 'label'; it has: AttrName, name"),
        ({"name": column(1)}, "name must be a cell array of texts"),
        ({"name": as_cells(["Bo_Li\\1.jpg"] * 12)}, "name: 'Bo_Li/1.jpg' is there twice"),
        ({"name": as_cells(["..\\key.jpg"])}, "name 1 is '../key.jpg'; allowed: PERSON"),
        ({"name": as_cells(["/etc/passwd"])}, "name 1 is '/etc/passwd'; allowed: PERSON"),
        ({"name": as_cells(["Bo_Li.jpg"])}, "name 1 is 'Bo_Li.jpg'; allowed: PERSON"),
        ({"AttrName": as_cells(["Male"] * 3)}, "'Male' is there twice"),
        ({"AttrName": as_cells(["Male", "", "Young"])}, "AttrName: '' is empty"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_what_does_not_fit_is_named(
    write: Callable[..., Path], changed: dict[str, Any], why: str, version: str
) -> None:
    require_reader(version)
    message = refused(write(version=version, **changed))
    assert why in message
    assert ".mat" in message


@pytest.mark.parametrize("content", [b"", b"no MATLAB file", b"<html>" * 200])
def test_a_file_of_another_kind_is_refused(write: Callable[..., Path], content: bytes) -> None:
    root = write()
    (root / "lfwa/lfw_att_40.mat").write_bytes(content)
    message = refused(root)
    assert f"{root}/lfwa/lfw_att_40.mat" in message
    assert ALLOWED in message


def test_a_file_without_checksums_is_refused(write: Callable[..., Path]) -> None:
    """On damaged ones, scipy crashes; MATLAB has not written them by default since 2004."""
    message = refused(write(version="6"))
    assert f"lfw_att_40.mat is no MATLAB file whose variables are compressed. {ALLOWED}" in message


@pytest.mark.parametrize("version", VERSIONS)
@settings(DRAWN, max_examples=60, derandomize=True)
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(tmp_path: Path, version: str, data: Any) -> None:
    """Whatever the readers of such files raise, a user sees what is allowed."""
    require_reader(version)
    write_lfwa(tmp_path, version=version)
    file = tmp_path / "lfwa/lfw_att_40.mat"
    content = bytearray(file.read_bytes())
    end = data.draw(st.integers(0, len(content)), "end")
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3), "places"):
        content[place] ^= data.draw(st.integers(1, 255), "flip")
    file.write_bytes(content[:end])
    with contextlib.suppress(DataError):
        found = read_matlab(file, "AttrName", "label", "name")
        assert set(found) == {"AttrName", "label", "name"}
        # Of HDF5 there are no checksums.
        truth = build_variables()["lfw_att_40"]["label"]
        assert version == "7.3" or found["label"].tolist() == truth.tolist()


def test_without_h5py_the_message_says_what_to_do(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5py")
    root = write(version="7.3")
    monkeypatch.setitem(sys.modules, "h5py", None)
    message = refused(root)
    assert "lfw_att_40.mat is of MATLAB's version 7.3" in message
    assert "pip install h5py" in message
    assert "'-v7'" in message


def test_a_folder_without_all_of_it_is_told_what_belongs_there(make: Any) -> None:
    write_lfwa(make.root)
    message = refused(make.root)
    assert "'lfwa' was not found" in message
    assert "lfw/PERSON/PERSON_0001.jpg" in message
