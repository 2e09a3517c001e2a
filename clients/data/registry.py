"""Every data set by name: adding one is adding an entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pudica.clients.data import digits, disguised, folders, parquet, torchvision_sets
from pudica.clients.data.errors import DataError
from pudica.clients.data.pixels import Channels
from pudica.clients.data.places import DataLocation, data_root
from pudica.clients.data.source import Source
from pudica.models.errors import unknown_name_error


class DiskFormat(NamedTuple):
    """One way in which a data set can lie on disk: how to find it there, and to read it."""

    locate: Callable[[DataLocation], Path | None]
    read: Callable[[Path], Source]


class Statistics(NamedTuple):
    """Published mean and standard deviation of each channel, in units of [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of one data set.

    Parameters
    ----------
    name, description : str
        For people.
    how : str
        How to get it.
    forms : tuple of Form
        Where it may lie, in the order they are tried.
    label : str
        The label column that is meant if none is named.
    image_size : int or None
        Side that images are resized to if none is asked for; None keeps their own.
    channels : {1, 3} or None
        Of the images; None takes it from the first image.
    class_names : mapping of str to tuple of str
        For each label column the names of its classes, where they are fixed.
    statistics : Statistics or None
        Published with the set.
    normalised : bool
        Whether it is usual to normalise this set.
    download : callable or None
        Downloads the set below a root.
    """

    name: str
    description: str
    how: str
    forms: tuple[DiskFormat, ...]
    label: str = "label"
    image_size: int | None = None
    channels: Channels | None = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    statistics: Statistics | None = None
    normalised: bool = False
    download: Callable[[Path], None] | None = None

    def locate(self, place: DataLocation) -> tuple[DiskFormat, Path] | None:
        """Return the first form that is there, and where.

        Raises
        ------
        DataError
            If a folder on the way cannot be read.
        """
        try:
            found = ((form, form.locate(place)) for form in self.forms)
            return next(((form, path) for form, path in found if path is not None), None)
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


@dataclass(frozen=True)
class CatalogueEntry:
    """One line of the catalogue.

    Parameters
    ----------
    name, description : str
        The data set.
    present : bool
        Whether it lies where it was looked for.
    where : str
        Its path, or how to get it.
    """

    name: str
    description: str
    present: bool
    where: str


def names() -> list[str]:
    """Return the names of all data sets."""
    return list(_ENTRIES)


def lookup(name: str) -> DatasetSpec:
    """Return what is known of a data set.

    Raises
    ------
    RequestError
        If there is none of that name.
    """
    if name not in _ENTRIES:
        raise unknown_name_error("data set", name, _ENTRIES)
    return _ENTRIES[name]


def catalogue(root: Path | None = None) -> list[CatalogueEntry]:
    """List every data set and whether it is there, without reading any.

    Parameters
    ----------
    root : Path, optional
        The folder that holds the data sets; by default as for :func:`~pudica.clients.data.load`.
    """
    place = DataLocation(data_root(root))
    return [_listed(entry, place) for entry in _ENTRIES.values()]


def find(entry: DatasetSpec, place: DataLocation, download: bool) -> Source:
    """Return a data set's source, downloading it first if that is wished and possible.

    Raises
    ------
    DataError
        If it is not there; the message says where it was looked for and how to get it.
    """
    found = entry.locate(place)
    if found is None and download and entry.download is not None:
        entry.download(place.path or place.root)
        found = entry.locate(place)
    if found is None:
        where = place.path or place.root
        missing = "" if where.exists() else ", which does not exist"
        raise DataError(f"'{entry.name}' was not found in {where.absolute()}{missing}. {entry.how}")
    form, path = found
    return form.read(path)


def _listed(entry: DatasetSpec, place: DataLocation) -> CatalogueEntry:
    found = None if entry.name in _OWN else entry.locate(place)
    where = str(found[1]) if found else entry.how
    return CatalogueEntry(entry.name, entry.description, found is not None, where)


def _in_parquet(*at: str) -> DiskFormat:
    return DiskFormat(partial(parquet.locate_parquet, folders=at), parquet.parquet)


def _by_torchvision(kind: torchvision_sets.TorchvisionSet) -> DiskFormat:
    return DiskFormat(kind.locate, kind.read)


def _in_class_folders(column: str, *at: str) -> DiskFormat:
    def locate(place: DataLocation) -> Path | None:
        return next((path for path in place.candidates(*at) if path.is_dir()), None)

    return DiskFormat(locate, partial(folders.image_folder, column=column))


_DOWNLOAD = (
    "Download it with `--set data.download=true`, set PUDICA_DATA or data.root to the folder "
    "that holds {files}, or put parquet files of it into {folder}/ there"
)
_CIFAR = Statistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_DIGITS = tuple("0123456789")
_GENDER = ("male", "female")
_RACE = ("White", "Black", "Asian", "Indian", "other")
DISGUISED = "disguised"
_OWN = ("image-folder", "parquet", DISGUISED)

_ENTRIES: dict[str, DatasetSpec] = {
    entry.name: entry
    for entry in (
        DatasetSpec(
            name="digits",
            description="1,797 handwritten digits, 8×8 grey, shipped with scikit-learn",
            how="Install scikit-learn",
            forms=(DiskFormat(digits.locate, digits.read),),
            channels=1,
            class_names={"label": _DIGITS},
        ),
        DatasetSpec(
            name="mnist",
            description="70,000 handwritten digits, 28×28 grey",
            how=_DOWNLOAD.format(files="MNIST/raw/*-ubyte", folder="mnist"),
            forms=(_by_torchvision(torchvision_sets.MNIST), _in_parquet("mnist")),
            channels=1,
            class_names={"label": _DIGITS},
            statistics=Statistics((0.1307,), (0.3081,)),
            download=torchvision_sets.MNIST.download,
        ),
        DatasetSpec(
            name="fashion-mnist",
            description="70,000 pieces of clothing, 28×28 grey",
            how=_DOWNLOAD.format(files="FashionMNIST/raw/*-ubyte", folder="fashion-mnist"),
            forms=(_by_torchvision(torchvision_sets.FASHION_MNIST), _in_parquet("fashion-mnist")),
            channels=1,
            class_names={
                "label": (
                    "T-shirt/top",
                    "Trouser",
                    "Pullover",
                    "Dress",
                    "Coat",
                    "Sandal",
                    "Shirt",
                    "Sneaker",
                    "Bag",
                    "Ankle boot",
                )
            },
            statistics=Statistics((0.2860,), (0.3530,)),
            download=torchvision_sets.FASHION_MNIST.download,
        ),
        DatasetSpec(
            name="cifar10",
            description="60,000 small photographs in 10 classes, 32×32 colour",
            how=_DOWNLOAD.format(files="cifar-10-batches-py/", folder="cifar10"),
            forms=(
                _by_torchvision(torchvision_sets.CIFAR10),
                _in_parquet("cifar10", "cifar10-jpeg"),
            ),
            channels=3,
            class_names={
                "label": (
                    "airplane",
                    "automobile",
                    "bird",
                    "cat",
                    "deer",
                    "dog",
                    "frog",
                    "horse",
                    "ship",
                    "truck",
                )
            },
            statistics=_CIFAR,
            normalised=True,
            download=torchvision_sets.CIFAR10.download,
        ),
        DatasetSpec(
            name="cifar100",
            description="60,000 small photographs in 100 classes, 32×32 colour",
            how=_DOWNLOAD.format(files="cifar-100-python/", folder="cifar100"),
            forms=(_by_torchvision(torchvision_sets.CIFAR100), _in_parquet("cifar100")),
            channels=3,
            statistics=_CIFAR,
            normalised=True,
            download=torchvision_sets.CIFAR100.download,
        ),
        DatasetSpec(
            name="celeba",
            description="202,599 aligned celebrity faces, 40 attributes, resized to 64×64 colour",
            how="Download it with `--set data.download=true` (needs the package gdown), or set "
            "PUDICA_DATA or data.root to the folder that holds celeba/img_align_celeba/ and "
            "celeba/*.txt. For research only",
            forms=(_by_torchvision(torchvision_sets.CELEBA),),
            label="Male",
            image_size=64,
            channels=3,
            download=torchvision_sets.CELEBA.download,
        ),
        DatasetSpec(
            name="lfw",
            description="13,233 faces of 5,749 people, resized to 64×64 colour",
            how="Torchvision can no longer download it. Set PUDICA_DATA or data.root to the "
            "folder that holds lfw-py/ with lfw-funneled.tgz, its folder lfw_funneled/, "
            "people.txt and lfw-names.txt; or use name: image-folder on any copy of it",
            forms=(_by_torchvision(torchvision_sets.LFW),),
            label="identity",
            image_size=64,
            channels=3,
        ),
        DatasetSpec(
            name="utkface",
            description="Some 20,000 faces with age, gender and race, colour",
            how="Download it from https://susanqq.github.io/UTKFace (for research only) and set "
            "PUDICA_DATA or data.root to the folder that holds UTKFace/ with the images "
            "[age]_[gender]_[race]_[date].jpg, or parquet files in utkface/ or utkface-64/",
            forms=(
                DiskFormat(folders.locate_utkface, folders.utkface),
                _in_parquet("utkface", "utkface-64"),
            ),
            label="gender",
            channels=3,
            class_names={"gender": _GENDER, "race": _RACE},
        ),
        DatasetSpec(
            name="att-faces",
            description="AT&T (ORL) faces: 40 people × 10, resized to 64×64 grey",
            how="Download the AT&T Database of Faces (for research only) and set PUDICA_DATA or "
            "data.root to the folder that holds att-faces/s1/1.pgm …, or parquet files in "
            "att-faces/",
            forms=(_in_parquet("att-faces"), _in_class_folders("identity", "att-faces")),
            label="identity",
            image_size=64,
            channels=1,
        ),
        DatasetSpec(
            name="image-folder",
            description="Your own images, in one folder a class",
            how="Set data.path to a folder that holds CLASS/image, or train/CLASS/image and "
            "test/CLASS/image",
            forms=(_in_class_folders("label", "."),),
        ),
        DatasetSpec(
            name="parquet",
            description="Your own parquet files in the Hugging Face layout",
            how="Set data.path to a parquet file, or to a folder that holds train*.parquet and, "
            "if there are any, test*.parquet",
            forms=(_in_parquet("."),),
        ),
        DatasetSpec(
            name=DISGUISED,
            description="Images that their owner disguised with `pudica disguise`",
            how="Set data.path to the folder that `pudica disguise` wrote",
            forms=(DiskFormat(disguised.locate_disguised, disguised.disguised),),
        ),
    )
}
