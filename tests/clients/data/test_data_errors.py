"""Bad input: what, where, and what is allowed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydantic
import pytest
from PIL import Image

from pudica.clients.data import DataConfig, DataError, load
from pudica.models.errors import RequestError


def refused(pattern: str, **config) -> str:
    with pytest.raises(DataError, match=pattern) as caught:
        load(DataConfig(**config), seed=0)
    return str(caught.value)


def folder(path: Path, pattern: str, **more) -> str:
    return refused(pattern, name="image-folder", path=path, **more)


def test_own_images_without_a_place_are_asked_for(tmp_path):
    """The folder of all data sets is tried, which is hardly meant."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all.parquet").touch()
    for name in ("image-folder", "parquet"):
        refused("Set data.path to a", name=name, root=tmp_path)
    assert "Set data.path" not in folder(tmp_path, "not an image file")


def test_a_data_error_is_a_request_error():
    assert issubclass(DataError, RequestError)


@pytest.mark.parametrize(
    ("section", "pattern"),
    [
        ({"name": "mnits"}, "unknown data set 'mnits'. Did you mean 'mnist'"),
        ({"limit": 0}, "limit"),
        ({"limit": -5}, "limit"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": 4}, "greater than or equal to 8"),
        ({"channels": 2}, "1 or 3"),
        ({"split": "5:1"}, "'own', 'public', 'train-test', '4:1:1' or '9:1'"),
        ({"normalize": "imagenet"}, "'none', 'dataset' or 'training'"),
        ({"lable": "x"}, "Extra inputs are not permitted"),
        ({"path": "/somewhere"}, "image-folder or parquet"),
        ({"partition": {"alpha": 0}}, "alpha"),
        ({"partition": {"scheme": "random"}}, "'iid', 'dirichlet'"),
    ],
)
def test_impossible_settings(section, pattern):
    with pytest.raises(pydantic.ValidationError, match=pattern):
        DataConfig(**section)


@pytest.mark.parametrize(
    "name", ["mnist", "cifar10", "celeba", "lfw", "lfwa", "utkface", "att-faces"]
)
def test_missing_data_say_where_and_how(name, tmp_path, make):
    message = refused("was not found in", name=name, root=make.root)
    assert str(make.root) in message
    assert "PUDICA_DATA" in message
    assert "which does not exist" in refused("not found", name=name, root=tmp_path / "no")


def test_missing_own_data():
    refused("nothing-here, which does not exist.*data.path", name="image-folder")
    refused("not found in /no/file.parquet.*data.path", name="parquet", path="/no/file.parquet")


def test_lfw_cannot_be_downloaded(make):
    refused("can no longer download it", name="lfw", root=make.root, download=True)


def test_folders_that_cannot_be_read(make, monkeypatch):
    path = make.image_folder()

    def forbidden(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    folder(path, rf"cannot read the folder {path}: Permission denied")
    monkeypatch.setattr(Path, "is_dir", forbidden)
    folder(path, rf"cannot read {path}: Permission denied")


def test_empty_class_folder(make):
    path = make.image_folder()
    (path / "empty").mkdir()
    folder(path, rf"empty class folder {path}/empty")


def test_file_that_is_no_image(make):
    path = make.image_folder()
    (path / "b/notes.txt").write_text("hello")
    folder(path, rf"{path}/b/notes.txt: not an image file .*allowed: .jpg")


def test_image_outside_a_class_folder(make):
    path = make.image_folder()
    make.image("own/stray.png")
    folder(path, "stray.png: an image outside a class folder; put it at CLASS/image")


def test_no_class_folders(make):
    folder(make.root, "holds no class folders")


def test_classes_that_differ_between_split_folders(make):
    path = make.image_folder(prefix="train/")
    make.image("own/test/a/0.png")
    folder(path, r"differ between splits: train has 2, test has 1; only in train: \['b'\]")


def test_folder_beside_train_that_is_no_split(make):
    make.image_folder(prefix="train/")
    folder(
        make.image_folder(prefix="holdout/"), "folders train and beside them holdout: which split"
    )


def test_one_class_only(make):
    path = make.image_folder()
    for file in (path / "b").iterdir():
        file.unlink()
    (path / "b").rmdir()
    folder(path, "every row has the label 'a'")


@pytest.mark.parametrize("keep", [0, 4, 40, 200, 500])
def test_broken_and_truncated_images_are_named_by_file_and_row(make, keep, encode):
    path = make.image_folder()
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    broken = stream.getvalue()[:keep]
    (path / "b/2.png").write_bytes(broken)
    folder(path, rf"{path}/b/2.png, row 8 of the set: broken image")
    images = [encode(i) for i in range(12)]
    images[7] = broken
    file = make.parquet(images=images)
    refused(rf"{file}, row 7: broken image", name="parquet", path=file)


def test_a_truncated_photograph(make):
    make.utkface(12)
    photograph = make.image("UTKFace/9_0_0_20170109142409999.jpg", size=(60, 60))
    photograph.write_bytes(photograph.read_bytes()[:-200])
    refused(
        rf"{photograph}.*broken image: .*[Tt]runcated", name="utkface", root=make.root, image_size=8
    )


def test_every_broken_image_is_listed_but_not_endlessly(make, encode):
    images = [b"no" if i % 2 else encode(i) for i in range(40)]
    path = make.parquet(images=images, label=[i % 3 for i in range(40)])
    message = refused("row 1: broken", name="parquet", path=path)
    assert [f"row {i}:" in message for i in (1, 3, 19, 21)] == [True, True, True, False]


def test_null_image(make, encode):
    path = make.parquet(images=[*(encode(i) for i in range(11)), None])
    refused("row 11: no image: its bytes are null", name="parquet", path=path)


def test_image_too_small(make):
    path = make.image_folder()
    make.image("own/b/1.png", size=(20, 7))
    folder(path, r"b/1.png.*too small: 20×7 pixels, at least 8×8", image_size=12)


def test_deep_pixels(make):
    path = make.image_folder()
    make.image("own/b/1.tiff", mode="F")
    folder(path, r"b/1.tiff.*deeper than 8 bits")


def test_images_that_differ_in_size(make):
    path = make.image_folder()
    make.image("own/b/1.png", size=(13, 13))
    folder(path, r"b/1.png.*13×13 pixels, the first one 12×12: set data.image_size")
    assert load(DataConfig(name="image-folder", path=path, image_size=8), 0).shape == (3, 8, 8)


def test_utkface_name_without_labels(make):
    make.utkface(6)
    stray = make.image("UTKFace/portrait.png")
    refused(rf"{stray}: the name is not \[age\]_\[gender\]", name="utkface", root=make.root)


def test_utkface_gender_out_of_range(make):
    make.utkface(6)
    make.image("UTKFace/20_2_0_20170109142408075.png")
    refused("with gender 0 or 1", name="utkface", root=make.root)


def test_unknown_label_column_lists_the_columns(make):
    path = make.parquet(kind=[0, 1] * 6, colour=["r", "g"] * 6)
    refused("unknown label column 'knid'.*kind, colour", name="parquet", path=path, label="knid")
    refused("unknown label column 'label'.*kind, colour", name="parquet", path=path)


def test_label_column_of_another_type(make):
    path = make.parquet(label=[0, 1] * 6, weight=[0.5] * 12)
    refused(
        "'weight'.*holds double: labels must be integers or strings.*: label",
        name="parquet",
        path=path,
        label="weight",
    )


def test_no_label_column_at_all(make):
    path = make.parquet(weight=[0.5] * 12)
    refused("unknown label column 'label'.*one of: none", name="parquet", path=path)


def test_null_label(make):
    path = make.parquet(label=[0, 1, None, 1] * 3)
    refused(rf"{path}, row 2, column 'label': the label is null \(3", name="parquet", path=path)


def test_labels_out_of_range(make):
    path = make.parquet(label=[0, 1, -1] * 4)
    refused("row 2, column 'label': label -1 out of range; allowed: 0 and more",
            name="parquet", path=path)  # fmt: skip
    make.parquet("mnist/train.parquet", label=[0, 1, 10] * 4)
    refused("label 10 out of range; allowed: 0 to 9", name="mnist", root=make.root)


def test_classes_that_differ_between_parquet_splits(make):
    make.parquet("own/train.parquet", label=[0, 1] * 6)
    make.parquet("own/test.parquet", label=[0, 1, 2] * 4)
    refused("class counts differ between splits: 2 in train, 3 in test.*4:1:1",
            name="parquet", path=make.root / "own")  # fmt: skip
    config = DataConfig(name="parquet", path=make.root / "own", split="4:1:1")
    assert load(config, 0).num_classes == 3


def test_declared_classes_that_differ_between_parquet_splits(make):
    for part, classes in (("train", ["a", "b", "c"]), ("test", ["a", "b"])):
        features = {"label": {"_type": "ClassLabel", "names": classes}}
        make.parquet(f"own/{part}.parquet", features=features)
    refused("test.parquet, row 2, column 'label': label 2 out of range; allowed: 0 to 1",
            name="parquet", path=make.root / "own")  # fmt: skip


def test_declared_classes_that_are_none(make):
    features = {"label": {"_type": "ClassLabel", "names": []}}
    make.parquet("own/train.parquet", label=[0, 1] * 6, features=features)
    refused("label . out of range", name="parquet", path=make.root / "own")


def test_columns_that_differ_between_parquet_files(make):
    make.parquet("own/train.parquet", label=[0, 1] * 6)
    make.parquet("own/test.parquet", lable=[0, 1] * 6)
    refused("test.parquet lacks the columns label", name="parquet", path=make.root / "own")
    make.parquet("own/test.parquet", label=["a", "b"] * 6)
    refused("column 'label' holds int64 in .*train.*, string in .*test",
            name="parquet", path=make.root / "own")  # fmt: skip


def test_parquet_files_that_are_not(make):
    path = make.root / "own.parquet"
    path.write_bytes(b"PAR1 no")
    refused(f"{path}: cannot be read as a parquet file", name="parquet", path=path)


def test_parquet_names_that_leave_the_split_open(make):
    make.parquet("own/train.parquet")
    make.parquet("own/all.parquet")
    refused("which split do all belong to", name="parquet", path=make.root / "own")
    (make.root / "own/train.parquet").unlink()
    (make.root / "own/all.parquet").rename(make.root / "own/test.parquet")
    refused("no training split: found test", name="parquet", path=make.root / "own")


def test_parquet_without_images(make):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = make.root / "table.parquet"
    pq.write_table(pa.table({"label": [0, 1], "x": [1.0, 2.0]}), path)
    refused("has no image column .*it has: label, x", name="parquet", path=path)


def test_parquet_without_rows(make):
    path = make.parquet(values=[])
    refused("holds no images", name="parquet", path=path)


def test_torchvision_files_that_are_broken(make):
    make.mnist()
    file = make.root / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    refused("could not read MNIST below", name="mnist", root=make.root)


def test_images_and_labels_of_different_number(make):
    make.mnist(train=20)
    other = type(make)(make.root / "other")
    other.mnist(train=21)
    name = "MNIST/raw/train-labels-idx1-ubyte"
    (make.root / name).write_bytes((other.root / name).read_bytes())
    refused("20 images but 21 labels", name="mnist", root=make.root)
