"""The ``data`` section of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from pudica.clients.data.decoding import MIN_SIDE, Background, Channels, Fit
from pudica.clients.data.errors import DataError
from pudica.clients.data.partition import PartitionConfig
from pudica.clients.data.registry import DISGUISED, Where, lookup
from pudica.clients.data.split_names import GivenPatterns, Patterns, SplitRules
from pudica.clients.shields.disguises import format_notation, parse_notation
from pudica.models.files import AbsolutePath
from pudica.models.naming import Label, validate_labels

Side = Annotated[int, Field(ge=MIN_SIDE, le=1024)]


class DataConfig(BaseModel):
    """Which images there are, how they are read, and how they are divided; see docs/data.md.

    Attributes
    ----------
    source : {"here", "hub"}
        Where ``name`` is known: here, or on the Hugging Face Hub.
    name : str
        The data set: one that ``pudica list`` shows, or ``owner/set`` of the Hub.
    root : Path or None
        The folder below which data sets are. None: ``PUDICA_DATA``, or else ``data``.
    path : Path or None
        The folder or file of this set, wherever it is. None: its usual place below ``root``.
    download : bool
        Whether the set may be fetched from the network, if it is not there.
    label : str or None
        The column of the class. None: the set's usual one, or the only one.
    classes : tuple of str or None
        Names of the classes 0, 1, 2, …, to which labels are matched by name; what has another
        label is refused. None: the data's own.
    attributes : tuple of str
        Yes-or-no questions besides the label: a binary column, ``COLUMN=VALUE``,
        ``COLUMN:LOW-HIGH``, or ``*`` for every binary column.
    attribute_names : tuple of str or None
        Names of the attributes 0, 1, 2, …, to which ``attributes`` are matched by name. None:
        they are ``attributes``.
    rename : mapping of str to str
        What classes and attributes are called instead of their own names, before they are matched.
    splits : mapping of str to sequence of str, "none" or None
        Which files or folders are of which split, as patterns; ``none``: there are no splits.
        None: their names tell.
    min_per_class : int, in images
        Classes with fewer images are left out.
    background : {"white", "black"}
        What lies behind transparent pixels, and around images that are padded.
    image_size : int or tuple of int, int or None, in pixels
        The side of a square, or height and width, to which all images are resized. None: their
        own, or the set's usual size.
    fit : {"stretch", "crop", "pad"}
        How an image of other proportions is given that size: stretched, cropped around the
        centre, or padded with the background.
    margin : int, in pixels
        How much black is then added on each side.
    channels : {1, 3} or None
        1: grey, 3: colour. None: as the first image.
    normalize : {"none", "dataset", "training"} or None
        ``none``: pixels in [0, 1]; ``dataset``: by the published mean and standard deviation;
        ``training``: by those of this training part. None: ``training`` with a shield, ``dataset``
        for CIFAR in colour, else ``none``.
    split : {"own", "public", "train-test", "4:1:1", "9:1"} or None
        ``own`` keeps the set's test split and splits the rest 4:1 into training and
        validation; ``public`` the same without reading any test image, so the test split may
        be missing; ``train-test`` trains on all the rest, without validation. ``4:1:1`` pools
        all rows; ``9:1`` splits each class into training and test, without validation. None:
        ``own`` if the set has a test split, else ``4:1:1``.
    limit : int or None, in images
        At most so many training images; validation and test shrink in proportion. None: all.
    partition : PartitionConfig or None
        How training images are divided among nodes. None: as the system needs it.
    shield : str or None
        Disguise of all images before anybody sees them, such as ``MAT(256)+MMT(10)``; see
        docs/disguises.md.
    key : Path or None
        The file of the disguise's key. None: derived from the run's seed, for experiments only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Where = "here"
    name: str = "digits"
    root: AbsolutePath | None = None
    path: AbsolutePath | None = None
    download: bool = False
    label: Label | None = None
    classes: tuple[Label, ...] | None = Field(None, min_length=2)
    attributes: tuple[Label, ...] = ()
    attribute_names: tuple[Label, ...] | None = Field(None, min_length=1)
    rename: Mapping[Label, Label] = {}
    splits: Patterns | None = None
    min_per_class: int = Field(1, ge=1)
    background: Background = "white"
    image_size: Side | tuple[Side, Side] | None = None
    fit: Fit = "stretch"
    margin: int = Field(0, ge=0, le=64)
    channels: Channels | None = None
    normalize: Literal["none", "dataset", "training"] | None = None
    split: Literal["own", "public", "train-test", "4:1:1", "9:1"] | None = None
    limit: int | None = Field(None, gt=0)
    partition: PartitionConfig | None = None
    shield: str | None = None
    key: AbsolutePath | None = None

    @field_validator("attributes", mode="before", json_schema_input_type=Label | tuple[Label, ...])
    @classmethod
    def _wrap_single_attribute(cls, attributes: object) -> object:
        return (attributes,) if isinstance(attributes, str) else attributes

    @field_validator("name")
    @classmethod
    def _validate_name(cls, name: str, info: ValidationInfo) -> str:
        return lookup(name, info.data.get("source", "here")).name

    @field_validator("shield")
    @classmethod
    def _normalise_shield(cls, shield: str | None) -> str | None:
        return None if shield is None else format_notation(parse_notation(shield))

    @field_validator("classes", "attribute_names")
    @classmethod
    def _validate_distinct(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if names is None else tuple(validate_labels(names))

    @field_validator("splits", mode="before", json_schema_input_type=GivenPatterns | None)
    @classmethod
    def _wrap_single_patterns(cls, splits: object) -> object:
        if not isinstance(splits, dict):
            return splits
        return {split: (p,) if isinstance(p, str) else p for split, p in splits.items()}

    @property
    def split_rules(self) -> SplitRules:
        """How to tell which split a file or a folder holds."""
        return SplitRules(self.splits, self.split in ("4:1:1", "9:1"))

    @property
    def uses_training_statistics(self) -> bool:
        """Whether images are normalised by statistics of the training part."""
        disguised = self.shield is not None or self.name == DISGUISED
        return self.normalize == "training" or (self.normalize is None and disguised)

    @model_validator(mode="after")
    def _validate_combination(self) -> Self:
        if self.key is not None and self.shield is None:
            raise DataError(
                "key: there is no shield that it could be the key of; of dlmt.shield it is dlmt.key"
            )
        if self.name == DISGUISED and self.margin:
            raise DataError("margin: there is no black that could be added to disguised images")
        if self.name == "digits" and self.path is not None:
            raise DataError(
                "'digits' comes with scikit-learn and has no path; "
                "for your own data set name to image-folder or parquet"
            )
        if self.normalize == "dataset":
            self._validate_statistics()
        return self

    def _validate_statistics(self) -> None:
        statistics = lookup(self.name, self.source).statistics
        if self.shield:
            problem = "the published mean and standard deviation are of plain images, these are "
            problem += "disguised"
        elif statistics is None:
            problem = f"'{self.name}' has no published mean and standard deviation"
        elif self.channels == 1 < len(statistics.mean):
            problem = f"the published mean and standard deviation of '{self.name}' are of RGB, "
            problem += "but channels is 1"
        else:
            return
        raise DataError(f"{problem}; allowed: normalize: training, none")
