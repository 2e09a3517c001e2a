"""Data are read as they are meant, or refused: what a name, a number or a pixel stands for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pudica.clients.data import DataConfig, DataError, Splits, load
from pudica.clients.data.classes import match_classes, to_labels
from pudica.clients.data.split_names import are_shards, find_split


def read(name: str, path: Path, **more: Any) -> Splits:
    return load(DataConfig(name=name, path=path, **more), seed=0)


def values(part: Any) -> list[int]:
    """Return the value that each even image of a part is made of."""
    return (part.pixels(slice(None))[:, 0, 0, 0] * 255).round().int().tolist()


def named(part: Any, splits: Splits) -> dict[int, str]:
    """Return by value of the image what its class is called."""
    return {v: splits.class_names[n] for v, n in zip(values(part), part.labels, strict=True)}


def said(splits: Splits, text: str) -> bool:
    return any(text in note for note in splits.notes)


# ------------------------------------------------------------------------------- splits

PLAIN = [
    ("train", "test"),
    ("Train", "Test"),
    ("TRAINING", "TESTING"),
    ("mydata_train", "mydata_test"),
    ("set.training", "set.eval"),
    ("train2017", "test2017"),
    ("train 1", "evaluation-final"),
]
UNCLEAR = [("fit", "holdout"), ("aa", "bb"), ("trainset", "testset"), ("training", "holdout")]


@pytest.mark.parametrize(("train", "test"), PLAIN)
def test_plain_names_of_splits_are_understood(make, train: str, test: str) -> None:
    make.parquet(f"table/{train}.parquet", range(12))
    make.parquet(f"table/{test}.parquet", range(50, 56))
    make.parquet(f"nested/{train}/0.parquet", range(12))
    make.parquet(f"nested/{test}/0.parquet", range(50, 56))
    make.image_folder("folder", prefix=f"{train}/")
    for label, value in (("a", 50), ("b", 51)):
        make.image(f"folder/{test}/{label}/0.png", value)
    for name, place in (("parquet", "table"), ("parquet", "nested"), ("image-folder", "folder")):
        splits = read(name, make.root / place)
        assert min(values(splits.test)) == 50
        assert not set(values(splits.train) + values(splits.validation)) & set(range(50, 56))
        assert said(splits, f"{train}{'/0' if place == 'nested' else ''} as train")


@pytest.mark.parametrize(("train", "test"), UNCLEAR)
def test_splits_that_are_not_plain_are_refused_until_they_are_said(make, train, test) -> None:
    make.parquet(f"table/{train}.parquet", range(12))
    make.parquet(f"table/{test}.parquet", range(50, 56))
    make.image_folder("folder", prefix=f"{train}/")
    for label, value in (("a", 50), ("b", 51)):
        make.image(f"folder/{test}/{label}/0.png", value)
    for name, place in (("parquet", "table"), ("image-folder", "folder")):
        with pytest.raises(DataError, match=rf"(?s){test}.*data\.splits"):
            read(name, make.root / place)
        splits = read(name, make.root / place, splits={"train": train, "test": [test[:-1] + "?"]})
        assert min(values(splits.test)) == 50
    pool = read("parquet", make.root / "table", splits="none")
    assert len(pool.train) + len(pool.validation) + len(pool.test) == 18


def test_what_has_no_training_split_is_refused(make) -> None:
    for part in ("test", "val"):
        make.image_folder("folder", prefix=f"{part}/")
        make.parquet(f"table/{part}.parquet")
    for name, place in (("parquet", "table"), ("image-folder", "folder")):
        with pytest.raises(DataError, match="has no training split: found val, test"):
            read(name, make.root / place)


def test_one_word_may_be_a_class_as_well(make) -> None:
    for value, label in enumerate(("bus", "train", "tank")):
        for number in range(4):
            make.image(f"own/{label}/{number}.png", value)
    assert read("image-folder", make.root / "own").class_names == ["bus", "tank", "train"]


def test_images_of_splits_without_classes_are_refused(make) -> None:
    for part in ("Train", "Test"):
        make.image(f"own/{part}/0.png")
    with pytest.raises(DataError, match="Test, Train hold images without a class"):
        read("image-folder", make.root / "own")
    splits = {"splits": "none", "split": "4:1:1"}
    for number in range(3):
        make.image(f"own/Train/{number}.png")
        make.image(f"own/Test/{number}.png")
    assert read("image-folder", make.root / "own", **splits).class_names == ["Test", "Train"]


def test_folders_within_classes_are_theirs(make) -> None:
    for label in ("cat", "dog"):
        for number in range(4):
            make.image(f"own/{label}/{label} {number}/0.png")
    assert read("image-folder", make.root / "own").class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        ({"train": "fit"}, "'holdout' in .* is of no split"),
        ({"train": "*", "test": "holdout"}, "'holdout' in .* is of train and of test"),
        ({"train": "*", "test": "nothing"}, "nothing in .* matches test: nothing; it holds: fit"),
        ({"test": "*"}, "no training split"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(make, patterns, problem) -> None:
    make.parquet("own/fit.parquet")
    make.parquet("own/holdout.parquet")
    with pytest.raises(DataError, match=problem):
        read("parquet", make.root / "own", splits=patterns)


def test_data_with_splits_of_their_own_need_none_to_be_said() -> None:
    with pytest.raises(DataError, match=r"data.splits: 'digits' in .* has its own splits"):
        load(DataConfig(name="digits", splits={"train": "*"}), seed=0)


def test_names_of_two_splits_and_of_pieces() -> None:
    assert find_split("Validation-00001-of-00002") == "validation"
    assert find_split("data/train/0000") == "train"
    assert find_split("retrained") is find_split("contest") is find_split("devices") is None
    with pytest.raises(DataError, match="speaks of test and of train"):
        find_split("train_test")
    assert are_shards(["part-0", "part-12"])
    assert are_shards([f"part-{n}-0a1b2c3d-0000-4000-8000-00000000000{n}-c000" for n in range(3)])
    assert not are_shards(["cats", "dogs"])


# ------------------------------------------------------------------------------- labels


def declare(*names: str) -> dict[str, Any]:
    return {"label": {"_type": "ClassLabel", "names": list(names)}}


def test_numbers_stand_for_the_names_that_their_file_declares(make) -> None:
    make.parquet(
        "own/train-0.parquet", range(9), label=[0, 1, 0] * 3, features=declare("dog", "cat")
    )
    make.parquet("own/train-1.parquet", range(9, 18), label=[0, 1, 1] * 3,
                 features=declare("cat", "dog"))  # fmt: skip
    make.parquet("own/test.parquet", range(50, 53), label=[1, 1, 0], features=declare("cat", "dog"))
    splits = read("parquet", make.root / "own", split="train-test")
    wanted = {**dict(zip(range(9), ["dog", "cat", "dog"] * 3, strict=True))}
    wanted |= dict(zip(range(9, 18), ["cat", "dog", "dog"] * 3, strict=True))
    assert named(splits.train, splits) == wanted
    assert named(splits.test, splits) == {50: "dog", 51: "dog", 52: "cat"}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_however_files_number_their_classes_names_stay(data: st.DataObject) -> None:
    words = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=8, unique=True))
    tables, lists, wanted = [], [], []
    for _ in range(data.draw(st.integers(1, 4))):
        own = data.draw(st.permutations(words).map(lambda w: w[: max(1, len(w) - 1)]))
        drawn = data.draw(st.lists(st.sampled_from(own), max_size=6))
        tables.append(pa.table({"label": pa.array([own.index(w) for w in drawn], pa.int64())}))
        lists.append({"label": own})
        wanted += drawn
    files = [Path(f"{number}.parquet") for number in range(len(tables))]
    matched, classes = match_classes(files, tables, lists)
    found = [classes["label"][n] for table in matched for n in table["label"].to_pylist()]
    assert found == wanted
    assert sorted(classes["label"]) == sorted({word for own in lists for word in own["label"]})


@pytest.mark.parametrize("silent", ["train", "test"])
def test_numbers_of_which_one_file_does_not_say_what_they_are_are_refused(make, silent) -> None:
    for part in ("train", "test"):
        features = {} if part == silent else declare("cat", "dog", "wolf")
        make.parquet(f"own/{part}.parquet", features=features)
    with pytest.raises(DataError, match=f"{silent}.parquet does not say which classes"):
        read("parquet", make.root / "own")


def test_numbers_beyond_the_names_of_their_own_file_are_refused(make) -> None:
    make.parquet("own/train.parquet", label=[0, 1, 2] * 4, features=declare("a", "b"))
    make.parquet("own/test.parquet", label=[0, 1, 2] * 4, features=declare("a", "b", "c"))
    with pytest.raises(DataError, match=r"train.parquet, row 2, column 'label': label 2 out of"):
        read("parquet", make.root / "own")


@pytest.mark.parametrize("names", [["cat", "dog", "cat"], "cat", {"0": "cat"}, 3])
def test_lists_of_classes_that_are_none_are_refused(make, names) -> None:
    features = {"label": {"_type": "ClassLabel", "names": names}}
    path = make.parquet(features=features)
    with pytest.raises(DataError, match=f"{path}, column 'label': the class"):
        read("parquet", path)


@pytest.mark.parametrize("info", [b"[]", b"{", b'{"info": 3}', b'{"info": {"features": [1]}}'])
def test_features_that_are_none_are_refused(make, info) -> None:
    path = make.parquet()
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), path)
    with pytest.raises(DataError, match=f"{path}: its Hugging Face features can't be read"):
        read("parquet", path)


@pytest.mark.parametrize("info", [b"{}", b'{"info": null}', b'{"info": {"features": null}}'])
def test_features_may_be_left_out(make, info) -> None:
    path = make.parquet()
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": info}), path)
    assert read("parquet", path).num_classes == 3


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0.0, 1.0, 2.0] * 4),
        pa.array([[0], [1], [2]] * 4),
        pa.array([[0.0], [1.0], [2.0]] * 4, pa.list_(pa.float32(), 1)),
        pa.array([0, 1, 2] * 4, pa.uint8()),
        pa.array(["0", "1", "2"] * 4, pa.string_view()),
        pa.array(["0", "1", "2"] * 4).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_plain_labels_are_read_however_they_are_stored(make, column) -> None:
    splits = read("parquet", make.parquet(label=column))
    assert splits.class_names == ["0", "1", "2"]
    found = named(splits.train, splits)
    assert found == {value: str(value % 3) for value in found}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0.0, 1.5, 2.0] * 4),
        pa.array([0.0, float("nan"), 2.0] * 4),
        pa.array([[0, 1], [1, 1], [2, 0]] * 4),
        pa.array([[0], [], [2]] * 4),
        pa.array([[0], None, [2]] * 4),
    ],
    ids=["fraction", "nan", "two", "none", "null"],
)
def test_what_is_no_label_is_refused(make, column) -> None:
    path = make.parquet(label=column)
    with pytest.raises(DataError, match=r"column 'label' of .* holds .*: labels must be integers"):
        read("parquet", path)


def test_what_turns_out_to_be_no_label_later_is_refused(make) -> None:
    count = 300  # more than are looked at first
    values = [float(number % 3) for number in range(count - 1)] + [0.5]
    path = make.parquet(values=[number % 200 for number in range(count)], label=values)
    with pytest.raises(DataError, match=f"{path}, column 'label', of double, can't be read as lab"):
        read("parquet", path)


def test_files_may_store_the_same_numbers_in_different_widths(make) -> None:
    make.parquet("own/train.parquet", label=pa.array([0, 1, 2] * 4, pa.uint8()))
    make.parquet("own/test.parquet", label=pa.array([0, 1, 2] * 4, pa.int64()))
    assert read("parquet", make.root / "own").num_classes == 3
    make.parquet("own/train.parquet", label=pa.array([0, 1, 200] * 4, pa.uint8()))
    make.parquet("own/test.parquet", label=pa.array([0, 1, 300] * 4, pa.int64()))
    with pytest.raises(DataError, match=r"class counts differ .* not in train: 300"):
        read("parquet", make.root / "own")
    with pytest.raises(pa.ArrowInvalid):
        to_labels(pa.chunked_array([pa.array([2**63], pa.uint64())]))


def test_names_that_look_alike_are_told(make) -> None:
    for label in ("Cat", "cat", "cat ", "dog"):
        for number in range(3):
            make.image(f"own/{label}/{number}.png")
    splits = read("image-folder", make.root / "own")
    assert splits.num_classes == 4
    assert said(splits, "'Cat' and 'cat' and 'cat ' differ in case or spaces only")
    plain = read("image-folder", make.image_folder("plain"))
    assert not said(plain, "differ in case")


# ---------------------------------------------------------------------------- files


def test_what_systems_leave_in_folders_is_left_out_and_told(make) -> None:
    path = make.image_folder(prefix="train/")
    clean = read("image-folder", path)
    litter = ("__MACOSX/a/0.png", "__pycache__/x.pyc", ".ipynb_checkpoints/0.png", "Thumbs.db")
    for below in ("", "train/", "train/a/"):
        for file in (*litter, "desktop.ini", ".DS_Store", "._0.png", "@eaDir/x"):
            place = path / below / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"no image")
    splits = read("image-folder", path)
    assert splits.fingerprint == clean.fingerprint
    (note,) = [note for note in splits.notes if "left out" in note]
    assert "Thumbs.db (3 times)" in note
    assert "__MACOSX (3 times)" in note


@pytest.mark.parametrize("suffix", [".jfif", ".JPG", ".jpe", ".pnm"])
def test_images_may_have_any_of_their_usual_endings(make, suffix) -> None:
    path = make.image_folder()
    for file in list(path.rglob("*.png")):
        Image.open(file).save(file.with_suffix(suffix), "PPM" if suffix == ".pnm" else "JPEG")
        file.unlink()
    assert read("image-folder", path).num_classes == 2


@pytest.mark.parametrize("suffix", [".pq", ".PARQUET", ".parq"])
def test_tables_may_have_any_of_their_usual_endings(make, suffix) -> None:
    make.parquet(f"own/train{suffix}")
    make.parquet(f"own/test{suffix}")
    assert len(read("parquet", make.root / "own").test) == 12


def test_names_of_files_need_not_be_utf8(make) -> None:
    path = make.image_folder()
    os.rename(path / "a" / "0.png", os.fsencode(path / "a") + b"/caf\xe9.png")
    assert read("image-folder", path).num_classes == 2
    (path / "a" / "1.png").write_bytes(b"broken")
    os.rename(path / "a" / "1.png", os.fsencode(path / "a") + b"/na\xefve.png")
    with pytest.raises(DataError, match=r"na\\udcefve.png.*broken image"):
        read("image-folder", path)
    os.rename(path / "b", os.fsencode(path) + b"/caf\xe9")
    with pytest.raises(DataError, match=r"the class folder.*caf\\udce9.*not UTF-8"):
        read("image-folder", path)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_images_may_be_bytes_of_any_kind(make, encode, kind) -> None:
    contents = pa.array([encode(value) for value in range(12)], kind)
    path = make.root / "own.parquet"
    pq.write_table(pa.table({"image": contents, "label": [0, 1] * 6}), path)
    splits = read("parquet", path)
    assert sorted(values(splits.train) + values(splits.validation) + values(splits.test)) == list(
        range(12)
    )


@pytest.mark.parametrize("shape", [(12, 12), (12, 12, 1), (12, 12, 3)], ids=str)
@pytest.mark.parametrize("declared", [True, False])
def test_images_may_be_rows_of_pixels(make, shape, declared) -> None:
    """As those of MNIST are stored by Hugging Face's Array2D."""
    kind: pa.DataType = pa.uint8() if not declared else pa.int32()
    for _ in shape:
        kind = pa.list_(kind)
    images = pa.array([np.full(shape, value).tolist() for value in range(12)], kind)
    feature = {"_type": f"Array{len(shape)}D", "shape": list(shape), "dtype": "int32"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"image": feature}}})}
    table = pa.table({"image": images, "label": [0, 1] * 6})
    path = make.root / "own.parquet"
    pq.write_table(table.replace_schema_metadata(metadata if declared else None), path)
    splits = read("parquet", path)
    assert splits.shape == (3 if shape[-1] == 3 else 1, 12, 12)
    assert sorted(values(splits.train) + values(splits.validation) + values(splits.test)) == list(
        range(12)
    )


@pytest.mark.parametrize("rows", [[[1, 2], [3]], [[300] * 9] * 9, [[-1] * 9] * 9, []], ids=str)
def test_rows_that_are_no_image_are_named(make, rows) -> None:
    good = [[0] * 9] * 9
    kind = pa.list_(pa.list_(pa.int32()))
    feature = {"_type": "Array2D", "shape": [9, 9], "dtype": "int32"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"image": feature}}})}
    table = pa.table({"image": pa.array([good, rows] * 3, kind), "label": [0, 1] * 3})
    path = make.root / "own.parquet"
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(DataError, match=f"{path}, row 1: "):
        read("parquet", path)


# ---------------------------------------------------------------------------- pixels


def shaped(mode: str, alpha: int = 255) -> Image.Image:
    """Return a black image whose shape is in its transparency only."""
    opacity = np.zeros((12, 12), np.uint8)
    opacity[3:9, 3:9] = alpha
    image = Image.new("L" if mode == "LA" else "RGB", (12, 12), 0)
    image.putalpha(Image.fromarray(opacity))
    return image.quantize().convert("PA") if mode == "PA" else image


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize(("background", "behind"), [("white", 255), ("black", 0)])
def test_transparent_images_are_laid_on_a_background(make, mode, background, behind) -> None:
    for label in ("a", "b"):
        for number in range(3):
            place = make.root / f"own/{label}/{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            shaped(mode).save(place)
    splits = read("image-folder", make.root / "own", background=background)
    (image,) = splits.train.pixels(slice(0, 1))
    assert (image[:, 0, 0] * 255).unique().tolist() == [behind]
    assert image[:, 5, 5].unique().tolist() == [0]
    assert said(splits, f"6 transparent images were laid on {background}")
    assert said(splits, "of one colour all over") == (background == "black")


def test_a_palette_with_a_transparent_colour_too(make) -> None:
    for label in ("a", "b"):
        for number in range(3):
            place = make.root / f"own/{label}/{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image = Image.new("P", (12, 12), 0)
            image.putpalette([0, 0, 0, 10, 20, 30])
            image.paste(1, (3, 3, 9, 9))
            image.save(place, transparency=0)
    (pixels,) = read("image-folder", make.root / "own").train.pixels(slice(0, 1))
    assert (pixels[:, 0, 0] * 255).tolist() == [255] * 3
    assert (pixels[:, 5, 5] * 255).round().tolist() == [10, 20, 30]


def test_opaque_images_are_as_without_transparency(make) -> None:
    plain, opaque = make.image_folder("plain"), make.image_folder("opaque")
    for file in opaque.rglob("*.png"):
        Image.open(file).convert("RGBA").save(file)
    splits = read("image-folder", opaque)
    assert splits.fingerprint == read("image-folder", plain).fingerprint
    assert not said(splits, "transparent")


def test_images_of_one_colour_are_counted(make, encode) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8)
    path = make.image_folder()
    assert said(read("image-folder", path), "12 images are of one colour all over")
    for number, file in enumerate(path.rglob("*.png")):
        Image.fromarray(noise + np.uint8(number)).save(file)
    assert read("image-folder", path).notes == []


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_grey_of_16_bits_is_scaled_as_colour_of_16_bits_is(make, suffix) -> None:
    for label in ("a", "b"):
        for number in range(3):
            place = make.root / f"own/{label}/{number}{suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((12, 12), 257 * (100 + number), np.uint16)).save(place)
    splits = read("image-folder", make.root / "own")
    assert splits.shape == (1, 12, 12)
    found = values(splits.train) + values(splits.validation) + values(splits.test)
    assert sorted(set(found)) == [100, 101, 102]
    assert said(splits, "6 grey images of 16 bits were scaled to 8")


# ---------------------------------------------------------------- classes that are too small


def test_small_classes_are_left_out_and_told(make, encode) -> None:
    label = ["a"] * 5 + ["b"] * 2 + ["c"] * 4 + ["d"]
    path = make.parquet(label=label)
    splits = read("parquet", path, min_per_class=3)
    assert splits.class_names == ["a", "c"]
    parts = (splits.train, splits.validation, splits.test)
    everyone = {value: name for part in parts for value, name in named(part, splits).items()}
    assert everyone == {value: label[value] for value in range(12) if label[value] in "ac"}
    assert said(splits, "left out, with fewer than 3 images: 2 classes (b, d)")
    with pytest.raises(DataError, match="1 classes have 5 images or more, at least 2 are needed"):
        read("parquet", path, min_per_class=5)


def test_nine_to_one_keeps_everybody_with_two_images(make) -> None:
    label = ["a"] * 6 + ["b"] * 2 + ["c"] + ["d"] * 3
    splits = read("parquet", make.parquet(label=label), split="9:1")
    assert splits.class_names == ["a", "b", "d"]
    assert np.bincount(splits.test.labels).tolist() == [1, 1, 1]
    assert np.bincount(splits.train.labels).tolist() == [5, 1, 2]
    assert said(splits, "left out, with fewer than 2 images: 1 classes (c)")


# ---------------------------------------------------------------- one vocabulary for all nodes


@pytest.mark.parametrize("kind", ["folders", "strings", "numbers", "declared"])
def test_labels_are_numbered_by_name_as_the_run_says(make, kind) -> None:
    words = ["1", "2"] if kind == "numbers" else ["dog", "wolf"]
    run = ("0", "1", "2") if kind == "numbers" else ("cat", "wolf", "dog")
    if kind == "folders":
        for word, value in zip(words, (0, 1), strict=True):
            for number in range(6):
                make.image(f"own/{word}/{number}.png", value + 2 * number)
        path, name = make.root / "own", "image-folder"
    else:
        label = {"numbers": [1, 2], "declared": [0, 1], "strings": words}[kind] * 6
        features = declare(*words, "unused") if kind == "declared" else None
        path, name = make.parquet(label=label, features=features), "parquet"
    splits = read(name, path, classes=run)
    assert splits.class_names == list(run)
    assert named(splits.train, splits) == {v: words[v % 2] for v in values(splits.train)}
    assert said(splits, f"'{words[0]}' is {run.index(words[0])}")
    with pytest.raises(DataError, match=f"has images of '{words[1]}', which the run's classes lac"):
        read(name, path, classes=[word for word in run if word != words[1]])


def test_a_node_may_hold_one_class_of_the_run(make) -> None:
    path = make.parquet(label=["dog"] * 12)
    splits = read("parquet", path, classes=("cat", "dog"))
    assert splits.num_classes == 2
    assert set(splits.train.labels) == {1}


@pytest.mark.parametrize("classes", [["cat"], ["cat", "cat"], ["cat", "d\nog"]])
def test_classes_of_a_run_are_distinct_names(classes) -> None:
    with pytest.raises(ValueError, match="classes"):
        DataConfig(classes=classes)


# ---------------------------------------------------------------- pictures that are not square


def test_pictures_that_are_not_square_keep_their_size(make) -> None:
    for label in ("a", "b"):
        for number in range(4):
            make.image(f"own/{label}/{number}.png", number, size=(10, 14))
    splits = read("image-folder", make.root / "own")
    assert splits.shape == (3, 14, 10)
    assert splits.train.batch(slice(0, 2))[0].shape == (2, 3, 14, 10)
    make.image("own/a/9.png", size=(14, 10))
    with pytest.raises(DataError, match=r"a/9.png.*14×10 pixels, the first one 10×14: set"):
        read("image-folder", make.root / "own")
    assert read("image-folder", make.root / "own", image_size=(9, 11)).shape == (3, 9, 11)


@pytest.mark.parametrize(
    ("fit", "columns"),
    [
        ("stretch", [100, 100, 0, 0, 255, 255, 100, 100]),
        ("crop", [0, 0, 0, 0, 255, 255, 255, 255]),
        ("pad", [9, 9, 9, 9, 9, 9, 9, 9]),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_other_proportions_are_stretched_cropped_or_padded(make, fit, columns, turned) -> None:
    """A picture twice as wide as high: grey, black, white and grey quarters."""
    quarters = np.repeat([100, 0, 255, 100], 8).astype(np.uint8)
    pixels = np.tile(quarters, (16, 1))
    for label in ("a", "b"):
        for number in range(3):
            place = make.root / f"own/{label}/{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.T if turned else pixels).save(place)
    splits = read("image-folder", make.root / "own", image_size=8, fit=fit, background="black")
    (image,) = splits.train.pixels(slice(0, 1))
    found = ((image[0].T if turned else image[0]) * 255).round()
    if fit == "pad":  # black above and below, and all four quarters between
        assert found[[0, 1, 6, 7]].unique().tolist() == [0]
        assert found[3, [0, 7]].tolist() == [100, 100]
    else:
        inner = [0, 2, 3, 4, 5, 7] if fit == "crop" else [0, 3, 4, 7]  # away from soft edges
        assert found[4, inner].tolist() == pytest.approx([columns[i] for i in inner], abs=40)


def test_one_folder_is_read_both_ways(make) -> None:
    """Its files and their order are the same, its classes are not: neither is the other's cache."""
    for part in ("train", "val"):
        make.image_folder(prefix=f"{part}/")
    path = make.root / "own"
    ways: list[dict[str, Any]] = [{}, {"splits": "none"}, {"splits": {"train": "*"}}]
    wanted = [["a", "b"], ["train", "val"], ["a", "b"]]
    for _ in range(2):
        assert [read("image-folder", path, **way).class_names for way in ways] == wanted


@pytest.mark.parametrize("where", ["{fold}/{part}", "{fold}_{part}", "{fold} {part} 0"])
def test_folds_are_not_mixed(make, where) -> None:
    """All images of one fold's test split are in another's training split."""
    for fold in ("fold1", "fold2"):
        for part in ("train", "test"):
            make.parquet("table/" + where.format(fold=fold, part=part) + ".parquet")
            make.image_folder("folder", prefix=where.format(fold=fold, part=part) + "/")
    with pytest.raises(DataError, match="belong to different sets, or folds of one"):
        read("parquet", make.root / "table")
    if "/" not in where:
        with pytest.raises(DataError, match="belong to different sets, or folds of one"):
            read("image-folder", make.root / "folder")
    one = {"train": where.format(fold="fold1", part="train")}
    with pytest.raises(DataError, match="is of no split"):
        read("parquet", make.root / "table", splits=one)


def test_names_in_the_files_count_more_than_the_usual_ones(make) -> None:
    features = {"gender": {"_type": "ClassLabel", "names": ["female", "male"]}}
    make.parquet("utkface/train.parquet", gender=[0, 1] * 6, features=features)
    splits = load(DataConfig(name="utkface", root=make.root), seed=0)
    assert named(splits.train, splits) == {
        value: ["female", "male"][value % 2] for value in values(splits.train)
    }
    assert splits.class_names == ["female", "male"]


def test_small_classes_are_counted_without_test_images(make) -> None:
    """Who holds training images only must leave out the same."""
    make.parquet("own/train.parquet", range(12), label=["a"] * 5 + ["b"] * 5 + ["c"] * 2)
    make.parquet("own/test.parquet", range(50, 56), label=["a", "b", "c", "c", "c", "c"])
    make.parquet("public/train.parquet", range(12), label=["a"] * 5 + ["b"] * 5 + ["c"] * 2)
    whole = read("parquet", make.root / "own", min_per_class=3)
    public = read("parquet", make.root / "public", min_per_class=3, split="public")
    assert whole.class_names == ["a", "b"]
    assert whole.fingerprint == public.fingerprint
    assert len(whole.test) == 2


@pytest.mark.parametrize("largest", [1, 255, 4095])
def test_grey_of_16_bits_that_uses_few_of_them_is_refused(make, largest) -> None:
    path = make.image_folder()
    Image.fromarray(np.full((12, 12), largest, np.uint16)).save(path / "a" / "0.png")
    with pytest.raises(DataError, match=rf"a/0.png.*of which the largest is {largest}"):
        read("image-folder", path)
