"""All data sets by name; add an entry here to add a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from pudica.clients.data import disguised, folders, hub, lfwa, packaged, parquet
from pudica.clients.data.decoding import Channels
from pudica.clients.data.errors import DataError
from pudica.clients.data.source import DataLocation, Source, data_root
from pudica.models.errors import unknown_name_error

Where = Literal["here", "hub"]


class DiskFormat(NamedTuple):
    """One format of a data set on disk: how to locate it and how to open it as a source.

    Where names of files or folders tell the splits, ``scan`` takes :class:`.SplitRules` too.
    """

    locate: Callable[[DataLocation], Path | None]
    scan: Callable[..., Source]
    has_named_splits: bool = False


class Statistics(NamedTuple):
    """Published mean and standard deviation of each channel, in units of [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class DatasetSpec:
    """Specification of one data set."""

    name: str
    description: str
    hint: str  # how to obtain it
    formats: tuple[DiskFormat, ...]  # in the order they are tried
    label: str = "label"  # the default column
    image_size: int | None = None  # to which images are resized by default; None keeps their size
    channels: Channels | None = None  # None takes them from the first image
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by label column
    statistics: Statistics | None = None
    normalise_by_default: bool = False  # by the statistics
    download: Callable[[Path], None] | None = None  # to a root folder

    def locate(self, location: DataLocation) -> tuple[DiskFormat, Path] | None:
        """Return the first format that is present, and its path; None if there is none.

        Raises DataError if a folder cannot be read.
        """
        try:
            for disk_format in self.formats:
                if (path := disk_format.locate(location)) is not None:
                    return disk_format, path
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        return None


class CatalogueEntry(NamedTuple):
    """One line of the catalogue; ``where`` is the data set's path, or how to obtain it."""

    name: str
    description: str
    present: bool
    where: str


def dataset_names() -> list[str]:
    """Return the names of all data sets."""
    return list(_ENTRIES)


def lookup(name: str, source: Where = "here") -> DatasetSpec:
    """Return the specification of a data set; raise RequestError if there is none.

    ``source``: ``"hub"`` for any set of the Hugging Face Hub, by its name there.
    """
    if source == "hub":
        return _describe_hub_set(name)
    if name not in _ENTRIES:
        raise unknown_name_error("data set", name, _ENTRIES)
    return _ENTRIES[name]


def catalogue(root: Path | None = None) -> list[CatalogueEntry]:
    """List every data set and whether it is present, without reading any.

    ``root`` is the folder of all data sets; by default that of
    :func:`~pudica.clients.data.load`.
    """
    location = DataLocation(data_root(root))
    entries = []
    for spec in _ENTRIES.values():
        found = None if spec.name in _USER_PROVIDED else spec.locate(location)
        where = str(found[1]) if found else spec.hint
        entries.append(CatalogueEntry(spec.name, spec.description, found is not None, where))
    return entries


def find_source(spec: DatasetSpec, location: DataLocation, download: bool) -> Source:
    """Return a data set's source; download it first if requested and possible.

    Raises DataError if it is missing; the message says where it was searched and how to obtain it.
    """
    found = spec.locate(location)
    if found is None and download and spec.download is not None:
        spec.download(location.path or location.root)
        found = spec.locate(location)
    if found is None:
        where = location.path or location.root
        missing = "" if where.exists() else ", which does not exist"
        raise DataError(f"'{spec.name}' was not found in {where.absolute()}{missing}. {spec.hint}")
    disk_format, path = found
    if disk_format.has_named_splits:
        return _scan_by_rules(disk_format, path, location, spec.hint)
    if location.rules.patterns is not None:
        raise DataError(f"data.splits: '{spec.name}' in {path} has its own splits; leave it out")
    return disk_format.scan(path)


def _scan_by_rules(
    disk_format: DiskFormat, path: Path, location: DataLocation, hint: str
) -> Source:
    try:
        return disk_format.scan(path, location.rules)
    except DataError as error:
        if location.path is None and path == location.root:
            # All data sets are below this folder; it is hardly a set itself.
            raise DataError(f"{error}. {hint}") from error
        raise


def _describe_hub_set(name: str) -> DatasetSpec:
    if not hub.NAME.fullmatch(name):
        raise DataError(f"name: '{name}' is none of the Hub; it has owner/set, or owner/set:subset")
    folder = hub.hub_folder(name)

    def locate(location: DataLocation) -> Path | None:
        return location.path or (folder if folder.is_dir() else None)

    return DatasetSpec(
        name=name,
        description="a data set of the Hugging Face Hub",
        hint="Fetch it with `--set data.download=true`",
        formats=(DiskFormat(locate, parquet.scan_parquet, True),),
        download=lambda _: hub.download_hub(name),
    )


def _parquet_format(*at: str) -> DiskFormat:
    return DiskFormat(partial(parquet.locate_parquet, folders=at), parquet.scan_parquet, True)


def _torchvision_format(dataset: packaged.TorchvisionSet) -> DiskFormat:
    return DiskFormat(dataset.locate, dataset.scan)


def _image_folder_format(column: str, *at: str) -> DiskFormat:
    def locate(location: DataLocation) -> Path | None:
        return next((path for path in location.candidates(*at) if path.is_dir()), None)

    return DiskFormat(locate, partial(folders.scan_image_folder, column=column), True)


_DOWNLOAD = (
    "Download it with `--set data.download=true`, set PUDICA_DATA or data.root to the folder "
    "that holds {files}, or put parquet files of it into {folder}/ there"
)
_CIFAR = Statistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_DIGITS = tuple("0123456789")
_CLOTHES = (
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
_PHOTOS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_GENDER = ("male", "female")
_RACE = ("White", "Black", "Asian", "Indian", "other")
DISGUISED = "disguised"
_USER_PROVIDED = ("image-folder", "parquet", DISGUISED)

_ENTRIES: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="digits",
            description="1,797 handwritten digits, 8×8 grey, shipped with scikit-learn",
            hint="Install scikit-learn",
            formats=(DiskFormat(packaged.locate_digits, packaged.scan_digits),),
            channels=1,
            class_names={"label": _DIGITS},
        ),
        DatasetSpec(
            name="mnist",
            description="70,000 handwritten digits, 28×28 grey",
            hint=_DOWNLOAD.format(files="MNIST/raw/*-ubyte", folder="mnist"),
            formats=(_torchvision_format(packaged.MNIST), _parquet_format("mnist")),
            channels=1,
            class_names={"label": _DIGITS},
            statistics=Statistics((0.1307,), (0.3081,)),
            download=packaged.MNIST.download,
        ),
        DatasetSpec(
            name="fashion-mnist",
            description="70,000 pieces of clothing, 28×28 grey",
            hint=_DOWNLOAD.format(files="FashionMNIST/raw/*-ubyte", folder="fashion-mnist"),
            formats=(
                _torchvision_format(packaged.FASHION_MNIST),
                _parquet_format("fashion-mnist"),
            ),
            channels=1,
            class_names={"label": _CLOTHES},
            statistics=Statistics((0.2860,), (0.3530,)),
            download=packaged.FASHION_MNIST.download,
        ),
        DatasetSpec(
            name="cifar10",
            description="60,000 small photographs in 10 classes, 32×32 colour",
            hint=_DOWNLOAD.format(files="cifar-10-batches-py/", folder="cifar10"),
            formats=(
                _torchvision_format(packaged.CIFAR10),
                _parquet_format("cifar10", "cifar10-jpeg"),
            ),
            channels=3,
            class_names={"label": _PHOTOS},
            statistics=_CIFAR,
            normalise_by_default=True,
            download=packaged.CIFAR10.download,
        ),
        DatasetSpec(
            name="cifar100",
            description="60,000 small photographs in 100 classes, 32×32 colour",
            hint=_DOWNLOAD.format(files="cifar-100-python/", folder="cifar100"),
            formats=(_torchvision_format(packaged.CIFAR100), _parquet_format("cifar100")),
            channels=3,
            statistics=_CIFAR,
            normalise_by_default=True,
            download=packaged.CIFAR100.download,
        ),
        DatasetSpec(
            name="celeba",
            description="202,599 aligned celebrity faces, 40 attributes, resized to 64×64 colour",
            hint="Download it with `--set data.download=true` (needs the package gdown), or set "
            "PUDICA_DATA or data.root to the folder that holds celeba/img_align_celeba/ and "
            "celeba/*.txt. For research only",
            formats=(_torchvision_format(packaged.CELEBA),),
            label="Male",
            image_size=64,
            channels=3,
            download=packaged.CELEBA.download,
        ),
        DatasetSpec(
            name="lfw",
            description="13,233 faces of 5,749 people, resized to 64×64 colour",
            hint="Torchvision can no longer download it. Set PUDICA_DATA or data.root to the "
            "folder that holds lfw-py/ with lfw-funneled.tgz, its folder lfw_funneled/, "
            "people.txt and lfw-names.txt; or use name: image-folder on any copy of it",
            formats=(_torchvision_format(packaged.LFW),),
            label="identity",
            image_size=64,
            channels=3,
        ),
        DatasetSpec(
            name="lfwa",
            description="13,143 faces of LFW with CelebA's 40 attributes, resized to 64×64 colour",
            hint="Get LFWA from CelebA's authors (for research only), and set PUDICA_DATA or "
            f"data.root to the folder that holds lfwa/ with {lfwa.ATTRIBUTES}, {lfwa.INDICES} and "
            "the images at lfw/PERSON/PERSON_0001.jpg",
            formats=(DiskFormat(lfwa.locate_lfwa, lfwa.scan_lfwa),),
            label="Male",
            image_size=64,
            channels=3,
        ),
        DatasetSpec(
            name="utkface",
            description="Some 20,000 faces with age, gender and race, colour",
            hint="Download it from https://susanqq.github.io/UTKFace (for research only) and set "
            "PUDICA_DATA or data.root to the folder that holds UTKFace/ with the images "
            "[age]_[gender]_[race]_[date].jpg, or parquet files in utkface/ or utkface-64/",
            formats=(
                DiskFormat(folders.locate_utkface, folders.scan_utkface),
                _parquet_format("utkface", "utkface-64"),
            ),
            label="gender",
            channels=3,
            class_names={"gender": _GENDER, "race": _RACE},
        ),
        DatasetSpec(
            name="att-faces",
            description="AT&T (ORL) faces: 40 people × 10, resized to 64×64 grey",
            hint="Download the AT&T Database of Faces (for research only) and set PUDICA_DATA or "
            "data.root to the folder that holds att-faces/s1/1.pgm …, or parquet files in "
            "att-faces/",
            formats=(_parquet_format("att-faces"), _image_folder_format("identity", "att-faces")),
            label="identity",
            image_size=64,
            channels=1,
        ),
        DatasetSpec(
            name="image-folder",
            description="Your own images, in one folder a class",
            hint="Set data.path to a folder that holds CLASS/image, or train/CLASS/image and "
            "test/CLASS/image",
            formats=(_image_folder_format("label", "."),),
        ),
        DatasetSpec(
            name="parquet",
            description="Your own parquet files in the Hugging Face layout",
            hint="Set data.path to a parquet file, or to a folder that holds train*.parquet and, "
            "if there are any, test*.parquet",
            formats=(_parquet_format("."),),
        ),
        DatasetSpec(
            name=DISGUISED,
            description="Images that their owner disguised with `pudica disguise`",
            hint="Set data.path to the folder that `pudica disguise` wrote",
            formats=(DiskFormat(disguised.locate_disguised, disguised.scan_disguised),),
        ),
    )
}
