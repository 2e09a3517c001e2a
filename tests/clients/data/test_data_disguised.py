"""Data sets that are disguised on disk: lossless, resumable, read as any other, and back."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pudica.clients.data import DataConfig, DataError, load
from pudica.clients.data.disguised import (
    DisguiseRequest,
    disguise_dataset,
    read_manifest,
    restore_dataset,
    writing,
)
from pudica.clients.data.folders import scan_image_folder
from pudica.clients.data.parquet import scan_parquet
from pudica.clients.shields.disguises import Key, KeyedDisguise
from pudica.models.errors import RequestError

SHAPE = (3, 8, 8)
NOTATION = "MAT(256)+MMT(10)"


def key(notation: str = NOTATION, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Key:
    return Key.from_seed(notation, shape, seed)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    sink = BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


def write_parquet(folder: Path, train: int = 30, test: int = 9) -> Path:
    """Write a set with a label, another column, and names of classes."""
    folder.mkdir()
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    for seed, (split, count) in enumerate({"train": train, "test": test}.items()):
        images = [{"bytes": png(image), "path": "x.png"} for image in pictures(count, seed)]
        columns = {
            "image": images,
            "label": [row % 2 for row in range(count)],
            "patient": [f"name {row}" for row in range(count)],
        }
        table = pa.table(columns).replace_schema_metadata(note)
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def write_folders(folder: Path, per_class: int = 6) -> Path:
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for row, image in enumerate(pictures(per_class, number)):
            (folder / name / f"secret name {row}.png").write_bytes(png(image))
    return folder


def request(folder: Path, by: Key | None = None, **changes: object) -> DisguiseRequest:
    source = scan_parquet(folder) if list(folder.glob("*.parquet")) else scan_image_folder(folder)
    return DisguiseRequest(source, "content", KeyedDisguise(by or key()), [], None, None)._replace(
        **changes
    )


def silent(done: int, total: int) -> None:
    """Show no progress."""


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file hold 8 images at most."""
    monkeypatch.setattr(writing, "SHARD_ROWS", 8)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("notation", [NOTATION, "MAT(2)", "MMT(1000000)", "Kiya", "Sharma(2)"])
@pytest.mark.parametrize("write", [write_parquet, write_folders])
def test_there_and_back_every_pixel_and_label_is_the_same(
    tmp_path: Path, notation: str, write: Callable[[Path], Path]
) -> None:
    own = KeyedDisguise(key(notation))
    plain = write(tmp_path / "plain")
    disguise_dataset(request(plain, own.key), tmp_path / "out", silent)
    restore_dataset(tmp_path / "out", own, tmp_path / "back", silent)
    name = "parquet" if write is write_parquet else "image-folder"
    before, after = (
        load(DataConfig(name=name, path=tmp_path / place), seed=0) for place in ("plain", "back")
    )
    assert before.class_names == after.class_names == ["cat", "dog"]
    for part in ("train", "validation", "test"):
        ours, theirs = getattr(before, part), getattr(after, part)
        np.testing.assert_array_equal(
            ours.plain_images(slice(None)), theirs.plain_images(slice(None))
        )
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert not list((tmp_path / "back").glob(".*"))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("notation", [NOTATION, "MMT(1000000)", "Kiya", "Sharma(2)", "Noise(9)"])
def test_a_disguised_set_is_read_as_one_that_is_disguised_in_the_experiment(
    tmp_path: Path, notation: str
) -> None:
    plain, file = write_parquet(tmp_path / "plain"), tmp_path / "key"
    key(notation).save(file)
    disguise_dataset(request(plain, key(notation)), tmp_path / "out", silent)
    stored = load(DataConfig(name="disguised", path=tmp_path / "out"), seed=0)
    config = DataConfig(name="parquet", path=plain, shield=notation, key=file)
    on_the_fly = load(config, seed=0)
    assert stored.key == on_the_fly.key == key(notation).fingerprint
    for part in ("train", "validation", "test"):
        ours, theirs = getattr(stored, part), getattr(on_the_fly, part)
        for found, wanted in zip(ours.batch(slice(None)), theirs.batch(slice(None)), strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("write", [write_parquet, write_folders])
@pytest.mark.parametrize("stopped_after", [0, 8])
def test_what_was_stopped_goes_on_and_ends_the_same(
    tmp_path: Path, write: Callable[[Path], Path], stopped_after: int
) -> None:
    plain = write(tmp_path / "plain")

    def stop(done: int, total: int) -> None:
        if done > stopped_after:
            raise KeyboardInterrupt

    disguise_dataset(request(plain), tmp_path / "whole", silent)
    with pytest.raises(KeyboardInterrupt):
        disguise_dataset(request(plain), tmp_path / "out", stop)
    begun = digests(tmp_path / "out")
    with pytest.raises(DataError, match="not complete"):
        load(DataConfig(name="disguised", path=tmp_path / "out"), seed=0)
    with pytest.raises(DataError, match="not complete"):
        restore_dataset(tmp_path / "out", KeyedDisguise(key()), tmp_path / "never", silent)
    seen: list[int] = []
    disguise_dataset(request(plain), tmp_path / "out", lambda done, _: seen.append(done))
    assert seen[0] == min(stopped_after + 8, seen[-1])
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    whole = {**digests(tmp_path / "out"), "disguise.json": begun["disguise.json"]}
    assert begun.items() <= whole.items()  # what was whole is not written again

    restore_dataset(tmp_path / "out", KeyedDisguise(key()), tmp_path / "back", silent)
    with pytest.raises(KeyboardInterrupt):
        restore_dataset(tmp_path / "out", KeyedDisguise(key()), tmp_path / "again", stop)
    restore_dataset(tmp_path / "out", KeyedDisguise(key()), tmp_path / "again", silent)
    assert digests(tmp_path / "again") == digests(tmp_path / "back")


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("write", [write_parquet, write_folders])
def test_whichever_parts_are_missing_they_are_made_again_of_their_own_images(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    plain, out = write(tmp_path / "plain"), tmp_path / "out"
    disguise_dataset(request(plain), out, silent)
    before = digests(out)
    parts = sorted(out.glob("*.parquet"))
    for lost in (parts[0], parts[-1]):
        lost.unlink()
    disguise_dataset(request(plain), out, silent)
    assert digests(out) == before


def test_a_set_without_images_is_refused(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "plain")
    (folder / "test.parquet").unlink()
    pq.write_table(pq.read_table(folder / "train.parquet").slice(0, 0), folder / "train.parquet")
    with pytest.raises(DataError, match="holds no images"):
        disguise_dataset(request(folder), tmp_path / "out", silent)


@pytest.mark.usefixtures("small_parts")
def test_a_full_disk_stops_it_half_way_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, written = write_parquet(tmp_path / "plain"), writing.write_atomically

    def full(path: Path, data: bytes) -> None:
        if path.name.startswith("train-00002"):
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, data)

    monkeypatch.setattr(writing, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        disguise_dataset(request(plain), tmp_path / "out", silent)
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2
    monkeypatch.setattr(writing, "write_atomically", written)
    assert disguise_dataset(request(plain), tmp_path / "out", silent).complete


def test_nothing_but_the_label_goes_along(tmp_path: Path) -> None:
    plain = write_parquet(tmp_path / "plain")
    disguise_dataset(request(plain), tmp_path / "out", silent)
    table = pq.read_table(tmp_path / "out" / "train-00000-of-00001.parquet")
    assert table.column_names == ["image", "label"]
    folders = write_folders(tmp_path / "folders")
    disguise_dataset(request(folders), tmp_path / "other", silent)
    for path in (tmp_path / "other").iterdir():
        assert b"secret name" not in path.read_bytes()
    both = request(plain, labels=["label", "patient", "label"])
    disguise_dataset(both, tmp_path / "both", silent)
    kept = pq.read_table(tmp_path / "both" / "train-00000-of-00001.parquet")
    assert kept.column_names == ["image", "label", "patient"]


def test_the_manifest_does_not_tell_which_images_they_were(tmp_path: Path) -> None:
    plain = write_parquet(tmp_path / "plain")
    for seed in (0, 1):
        disguise_dataset(request(plain, key(seed=seed)), tmp_path / str(seed), silent)
    first, second = (read_manifest(tmp_path / str(seed)).source for seed in (0, 1))
    assert first != second
    assert "content" not in (first, second)


def test_values_are_the_smallest_whole_numbers_that_hold_them(tmp_path: Path) -> None:
    plain = write_parquet(tmp_path / "plain")
    kinds = {"MAT(256)": "int16", "MMT(10000)": "int32", "Kiya": "uint8", "Sharma(2)": "float32"}
    for notation, dtype in kinds.items():
        out = tmp_path / notation
        assert disguise_dataset(request(plain, key(notation)), out, silent).dtype == dtype
        table = pq.read_table(out / "test-00000-of-00001.parquet")
        row = np.frombuffer(table["image"][3].as_py(), dtype).reshape(SHAPE)
        image = pictures(9, 1)[3].transpose(2, 0, 1)[None]
        wanted = KeyedDisguise(key(notation)).protect(torch.from_numpy(image.copy()))
        np.testing.assert_array_equal(row, wanted[0].numpy().astype(dtype))


# -------------------------------------------------------------------------- bad input


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    plain = write_parquet(tmp_path / "plain")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="is not empty"):
        disguise_dataset(request(plain), tmp_path / "out", silent)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    disguise_dataset(request(plain), tmp_path / "there", silent)
    other = key(seed=1)
    with pytest.raises(DataError, match=f"{key().fingerprint}.*{other.fingerprint}"):
        disguise_dataset(request(plain, other), tmp_path / "there", silent)
    with pytest.raises(DataError, match="is not empty"):
        restore_dataset(tmp_path / "there", KeyedDisguise(key()), tmp_path / "out", silent)


def test_another_key_is_refused_by_both_fingerprints(tmp_path: Path) -> None:
    disguise_dataset(request(write_parquet(tmp_path / "plain")), tmp_path / "out", silent)
    other = key(seed=1)
    with pytest.raises(RequestError, match=f"{key().fingerprint}.*{other.fingerprint}"):
        restore_dataset(tmp_path / "out", KeyedDisguise(other), tmp_path / "back", silent)


def test_what_loses_does_not_come_back(tmp_path: Path) -> None:
    blur = key("Blur(1)")
    disguise_dataset(request(write_parquet(tmp_path / "plain"), blur), tmp_path / "out", silent)
    with pytest.raises(RequestError, match=r"Blur\(1\) keeps less"):
        restore_dataset(tmp_path / "out", KeyedDisguise(blur), tmp_path / "back", silent)
    assert not (tmp_path / "back").exists()


def test_what_could_not_be_begun_is_not_in_the_way_of_another_key(tmp_path: Path) -> None:
    plain, out = write_parquet(tmp_path / "plain"), tmp_path / "out"
    with pytest.raises(DataError, match="make a key for"):
        disguise_dataset(request(plain, key(shape=(3, 16, 16))), out, silent)
    assert not list(out.iterdir())
    disguise_dataset(request(plain), out, silent)
    assert load(DataConfig(name="disguised", path=out), seed=0).key == key().fingerprint


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    plain, out = write_parquet(tmp_path / "plain"), tmp_path / "out"
    disguise_dataset(request(plain), out, silent)
    whole = digests(out)
    part = sorted(out.glob("train-*.parquet"))[1]
    part.write_bytes(part.read_bytes()[:-100])
    disguise_dataset(request(plain), out, silent)
    assert digests(out) == whole


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"labels": ["label", "patient"]}, "with the labels label; wanted are label, patient"),
        ({"fingerprint": "other"}, "of other images: name a new folder"),
        ({"disguise": KeyedDisguise(key(seed=1))}, key(seed=1).fingerprint),
    ],
)
def test_a_folder_that_was_begun_otherwise_says_in_what(
    tmp_path: Path, changes: dict[str, object], why: str
) -> None:
    plain, out = write_parquet(tmp_path / "plain"), tmp_path / "out"
    disguise_dataset(request(plain), out, silent)
    with pytest.raises(DataError, match=why):
        disguise_dataset(request(plain, **changes), out, silent)


def test_images_of_another_shape_name_the_key_and_the_way_out(tmp_path: Path) -> None:
    plain, other = write_parquet(tmp_path / "plain"), key(shape=(3, 16, 16))
    with pytest.raises(DataError, match=f"{other.fingerprint} is for 3x16x16.*--image-size 16"):
        disguise_dataset(request(plain, other), tmp_path / "out", silent)
    disguise_dataset(request(plain, other, size=16), tmp_path / "resized", silent)


def test_images_of_unequal_size_name_the_first_that_differs(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "plain")
    wide = np.zeros((8, 9, 3), np.uint8)
    (folder / "dog" / "secret name 3.png").write_bytes(png(wide))
    with pytest.raises(DataError, match=r"dog/secret name 3\.png.*9×8 pixels"):
        disguise_dataset(request(folder), tmp_path / "out", silent)


def test_a_label_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    plain = write_parquet(tmp_path / "plain")
    with pytest.raises(DataError, match=r"no label column 'age' in .*; allowed: label, patient"):
        disguise_dataset(request(plain, labels=["age"]), tmp_path / "out", silent)


def test_a_file_that_was_changed_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    disguise_dataset(request(write_parquet(tmp_path / "plain")), out, silent)
    file = out / "test-00000-of-00001.parquet"
    table = pq.read_table(file)
    high = np.full((9, *SHAPE), 6000, np.int16)
    images = pa.array([row.tobytes() for row in high], pa.binary(high[0].nbytes))
    pq.write_table(table.set_column(0, "image", images), file)
    with pytest.raises(DataError, match="values outside 1 to 5110"):
        load(DataConfig(name="disguised", path=out), seed=0)
    pq.write_table(table.slice(1), file)
    with pytest.raises(DataError, match="must have 9 rows of"):
        load(DataConfig(name="disguised", path=out), seed=0)
    file.unlink()
    with pytest.raises(DataError, match="not complete"):
        load(DataConfig(name="disguised", path=out), seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"rows_per_part": 0},
        {"train": -1},
        {"train": 0},
        {"disguise": "Foo(3)"},
        {"kind": "pixels"},
        {"low": 9000},
        {"shape": [3, 8, 0]},
        {"surprise": 1},
    ],
)
def test_a_manifest_that_makes_no_sense_is_damaged(
    tmp_path: Path, change: dict[str, object]
) -> None:
    out = tmp_path / "out"
    disguise_dataset(request(write_parquet(tmp_path / "plain")), out, silent)
    told = json.loads((out / "disguise.json").read_text())
    (out / "disguise.json").write_text(json.dumps(told | change))
    with pytest.raises(DataError, match=r"disguise\.json is damaged"):
        load(DataConfig(name="disguised", path=out), seed=0)
    with pytest.raises(DataError, match=r"disguise\.json is damaged"):
        restore_dataset(out, KeyedDisguise(key()), tmp_path / "back", silent)


@pytest.mark.parametrize("label", ["..", ".", "a/b", "/etc", "x\0y", "n" * 300, "../x"])
def test_a_label_leads_nowhere_else(tmp_path: Path, label: str) -> None:
    out = tmp_path / "out"
    disguise_dataset(request(write_folders(tmp_path / "plain")), out, silent)
    (file,) = out.glob("*.parquet")
    table = pq.read_table(file)
    labels = pa.array([label] * len(table))
    pq.write_table(table.set_column(1, "label", labels), file)
    with pytest.raises(DataError, match="is no name of a class folder"):
        restore_dataset(out, KeyedDisguise(key()), tmp_path / "back", silent)
    assert not (tmp_path / "back").exists()


def test_disguised_images_can_not_be_changed_as_if_they_were_plain(tmp_path: Path) -> None:
    disguise_dataset(request(write_parquet(tmp_path / "plain")), tmp_path / "out", silent)
    train = load(DataConfig(name="disguised", path=tmp_path / "out"), seed=0).train
    with pytest.raises(DataError, match="set augment_first: false"):
        train.batch(slice(0, 2), lambda x: x)


@pytest.mark.parametrize("notation", ["MAT(300)", "MMT(9)", "Sharma(2)", "Noise(3)"])
def test_black_is_as_near_to_zero_as_disguised_values_come(tmp_path: Path, notation: str) -> None:
    plain, file = write_parquet(tmp_path / "plain"), tmp_path / "key"
    key(notation).save(file)
    train = load(DataConfig(name="parquet", path=plain, shield=notation, key=file), seed=0).train
    nearest = min(max(0, train.span.low), train.span.high)
    raw = train.denormalise(train.black) * (train.span.high - train.span.low) + train.span.low
    np.testing.assert_allclose(raw, np.full((3, 1, 1), nearest), atol=1e-3)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"margin": 2}, "no black"),
        ({"image_size": 16}, "can't be resized"),
        ({"shield": "MAT(9)"}, "disguised already, with the key"),
        ({"normalize": "dataset"}, "no published mean"),
    ],
)
def test_what_disguised_images_do_not_allow(
    tmp_path: Path, setting: dict[str, object], why: str
) -> None:
    disguise_dataset(request(write_parquet(tmp_path / "plain")), tmp_path / "out", silent)
    with pytest.raises(ValueError, match=why):
        load(DataConfig(name="disguised", path=tmp_path / "out", **setting), seed=0)  # type: ignore[arg-type]
