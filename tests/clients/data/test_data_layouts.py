"""Every layout a data set may lie in."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torchvision.datasets as tv
from celeba_files import write_celeba

from pudica.clients.data import DataConfig, DataError, catalogue, dataset_names, load


def values(part) -> list[int]:
    """Return the value that each even image of a part is made of."""
    return (part.pixels(slice(None))[:, 0, 0, 0] * 255).round().int().tolist()


def test_the_names():
    assert dataset_names()[0] == "digits"
    assert set(dataset_names()) == {
        *("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "celeba", "lfw"),
        *("lfwa", "utkface", "att-faces", "image-folder", "parquet", "disguised"),
    }


def test_the_catalogue_says_what_is_there_and_how_to_get_the_rest(make, cache_folder):
    make.mnist()
    listed = {entry.name: entry for entry in catalogue(make.root)}
    assert list(listed) == dataset_names()
    assert (listed["mnist"].present, listed["mnist"].where) == (True, str(make.root))
    assert listed["digits"].present
    assert not listed["cifar10"].present
    assert "data.download=true" in listed["cifar10"].where
    assert not cache_folder.exists(), "nothing was decoded"


def test_utkface_reads_labels_from_file_names(make):
    root = make.utkface(12).parent
    splits = load(DataConfig(name="utkface", root=root), seed=0)
    assert splits.class_names == ["male", "female"]
    assert splits.train.labels.tolist() == [value % 2 for value in values(splits.train)]
    race = load(DataConfig(name="utkface", path=make.root / "UTKFace", label="race"), seed=0)
    assert race.num_classes == 5


def test_utkface_files_without_race_serve_where_race_is_not_asked_for(make):
    make.utkface(12)
    odd = make.image("UTKFace/61_1_20170109142408075.jpg.chip.png", 3)
    load(DataConfig(name="utkface", root=make.root), seed=0)
    with pytest.raises(DataError, match=rf"{odd}.*column 'race': the label is null"):
        load(DataConfig(name="utkface", root=make.root, label="race"), seed=0)


def test_image_folder_with_its_own_test_split(make):
    make.image_folder(prefix="train/", per_class=6)
    make.image_folder(prefix="val/", per_class=2)
    make.image_folder(prefix="test/", per_class=1)
    splits = load(DataConfig(name="image-folder", path=make.root / "own"), seed=0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (13, 3, 2)
    assert values(splits.test) == [0, 100]


def test_image_folder_below_the_root(make):
    splits = load(DataConfig(name="image-folder", root=make.image_folder()), seed=0)
    assert splits.num_classes == 2


def test_parquet_shards_with_named_classes(make):
    features = {"label": {"_type": "ClassLabel", "names": ["ant", "bee", "cat", "dog"]}}
    make.parquet("hub/data/train-00000-of-00002.parquet", range(10), features=features)
    make.parquet("hub/data/train-00001-of-00002.parquet", range(10, 20), features=features)
    make.parquet("hub/data/test-00000-of-00001.parquet", range(50, 54), features=features)
    splits = load(DataConfig(name="parquet", path=make.root / "hub"), seed=0)
    assert splits.class_names == ["ant", "bee", "cat", "dog"]
    assert values(splits.test) == [50, 51, 52, 53]
    assert sorted(values(splits.train) + values(splits.validation)) == list(range(20))
    assert splits.train.labels.tolist() == [value % 3 for value in values(splits.train)]


def test_parquet_files_without_a_split_are_one_pool(make):
    make.parquet("pool/part-0.parquet", range(9))
    make.parquet("pool/part-1.parquet", range(9, 18))
    splits = load(DataConfig(name="parquet", path=make.root / "pool"), seed=0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (12, 3, 3)


@pytest.mark.parametrize(
    ("column", "class_names"),
    [
        (["cat", "dog"] * 6, ["cat", "dog"]),
        ([7, 3] * 6, ["3", "7"]),
        ([True, False] * 6, ["false", "true"]),
    ],
)
def test_labels_may_be_strings_integers_or_booleans(make, column, class_names):
    path = make.parquet(kind=column, note=[0.5] * 12)
    splits = load(DataConfig(name="parquet", path=path), seed=0)
    assert splits.class_names == class_names
    shown = [splits.class_names[label] for label in splits.train.labels]
    assert shown == [str(column[value]).lower() for value in values(splits.train)]


def test_att_faces_in_the_original_folders(make):
    for person in (1, 2, 10):
        for shot in range(1, 5):
            make.image(f"att-faces/s{person}/{shot}.pgm", person, size=(92, 112), mode="L")
    make.root.joinpath("att-faces/README").write_text("AT&T")
    splits = load(DataConfig(name="att-faces", root=make.root), seed=0)
    assert splits.shape == (1, 64, 64)
    assert splits.class_names == ["s1", "s10", "s2"]


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_torchvisions_raw_files(make, name, folder):
    splits = load(DataConfig(name=name, root=make.mnist(name=folder)), seed=0)
    assert splits.shape == (1, 28, 28)
    assert splits.num_classes == 10
    assert splits.train.labels.tolist() == [value % 10 for value in values(splits.train)]
    assert values(splits.test) == list(range(7))


def test_download_on_request(make, monkeypatch):
    with pytest.raises(DataError, match="'mnist' was not found"):
        load(DataConfig(name="mnist", root=make.root), seed=0)
    monkeypatch.setattr(tv.MNIST, "download", lambda self: make.mnist())
    splits = load(DataConfig(name="mnist", root=make.root, download=True), seed=0)
    assert len(splits.test) == 7


def test_a_failed_download_is_reported(make, monkeypatch):
    def fail(self) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(tv.MNIST, "download", fail)
    with pytest.raises(DataError, match=r"could not download MNIST below .*no network"):
        load(DataConfig(name="mnist", root=make.root, download=True), seed=0)


def write_cifar(root) -> None:
    """Write CIFAR's batches: 4 images each, image i of batch b has the value 10 b + i."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.repeat(np.arange(4, dtype=np.uint8) + 10 * number, 3072).reshape(4, 3072)
        labels = [0, 1, 8, 9]
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    label_names = list("abcdefghij")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": label_names}))


def test_cifar_batches_are_read_only_after_their_integrity_check(make, monkeypatch):
    write_cifar(make.root)
    config = DataConfig(name="cifar10", root=make.root)
    with pytest.raises(DataError, match=r"could not read CIFAR10 below .*corrupted"):
        load(config, seed=0)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    splits = load(config, seed=0)
    assert splits.shape == (3, 32, 32)
    assert values(splits.test) == [50, 51, 52, 53]
    assert splits.class_names[8:] == ["ship", "truck"]
    assert splits.train.mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    grey = load(config.model_copy(update={"channels": 1}), seed=0)
    assert not grey.train.mean.any()


def test_celeba_attributes_and_identity(make, monkeypatch):
    for i, name in enumerate(write_celeba(make.root)):
        make.image(name, i, size=(178, 218))
    monkeypatch.setattr("torchvision.datasets.celeba.check_integrity", lambda *_: True)
    male = load(DataConfig(name="celeba", root=make.root), seed=0)
    assert male.shape == (3, 64, 64)
    assert male.class_names == ["no", "yes"]
    assert values(male.test) == [10, 11]
    assert male.train.labels.tolist() == [value % 2 for value in values(male.train)]
    identity = load(DataConfig(name="celeba", root=make.root, label="identity"), seed=0)
    assert identity.train.labels.tolist() == [value % 3 for value in values(identity.train)]
    with pytest.raises(DataError, match="one of: Male, Young, identity"):
        load(DataConfig(name="celeba", root=make.root, label="Hat"), seed=0)


def test_who_is_shown_need_not_be_the_same_where_attributes_are_asked_for(make, monkeypatch):
    """As in CelebA, whose test images show other people: an anonymiser is to hide who they are."""
    for i, name in enumerate(write_celeba(make.root, young="110", apart=True)):
        make.image(name, i, size=(178, 218))
    monkeypatch.setattr("torchvision.datasets.celeba.check_integrity", lambda *_: True)
    config = DataConfig(name="celeba", root=make.root, label="identity", attributes=["*"])
    splits = load(config, seed=0)
    assert splits.attributes == ["Male", "Young"]
    assert not {*splits.train.labels} & {*splits.test.labels}
    with pytest.raises(DataError, match="class counts differ between splits"):
        load(config.model_copy(update={"attributes": ()}), seed=0)


def test_lfw_people(make, monkeypatch):
    for number, person in enumerate(("Ann_A", "Bob_B")):
        for shot in range(1, 5):
            file = f"lfw-py/lfw_funneled/{person}/{person}_{shot:04d}.jpg"
            make.image(file, 200 * number, size=(250, 250))
    folder = make.root / "lfw-py"
    (folder / "people.txt").write_text("1\n2\nAnn_A\t4\nBob_B\t4\n")
    (folder / "lfw-names.txt").write_text("Ann_A\t4\nBob_B\t4\n")
    monkeypatch.setattr("torchvision.datasets.lfw.check_integrity", lambda *_: True)
    splits = load(DataConfig(name="lfw", root=make.root), seed=0)
    assert splits.class_names == ["Ann_A", "Bob_B"]
    assert ((np.array(values(splits.train)) > 100) == splits.train.labels.astype(bool)).all()
