"""The ``data`` section of an experiment."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pudica.clients.data.errors import DataError
from pudica.clients.data.partition import PartitionConfig
from pudica.clients.data.pixels import MIN_SIDE, Channels
from pudica.clients.data.registry import DISGUISED, lookup
from pudica.clients.shields.disguises import format_notation, parse_notation
from pudica.models.files import AbsolutePath
from pudica.models.naming import Label


class DataConfig(BaseModel):
    """The ``data`` section of an experiment.

    Parameters
    ----------
    name : str
        One of :func:`~pudica.clients.data.names`.
    root : Path or None
        The folder that holds the data sets; by default ``PUDICA_DATA``, else ``./data``.
    path : Path or None
        The folder or file of this data set, for your own data or an unusual location.
    download : bool
        Whether to download a missing set through torchvision.
    label : str or None
        Name of the label column; by default the set's standard one.
    attributes : tuple of str
        Binary attributes besides the label, see :mod:`pudica.clients.data.attributes`.
    image_size : int or None
        Side in pixels of the square that images are resized to; by default their own size if
        they are square, 64 for ``celeba``, ``lfw`` and ``att-faces``.
    margin : int
        Black pixels added on each side after resizing.
    channels : {1, 3} or None
        Grey or RGB; by default the images' own.
    normalize : {"none", "dataset", "training"} or None
        Pixels in [0, 1], or normalised by mean and standard deviation per channel: the
        published ones, or those of this training part. By default ``"training"`` where
        images are disguised, ``"dataset"`` for CIFAR in colour, else ``"none"``.
    split : {"own", "public", "train-test", "4:1:1", "9:1"} or None
        ``"own"`` keeps the set's test split and splits the rest 4:1 into training and
        validation. ``"public"`` does the same without reading any test image, so the test split
        may be missing. ``"train-test"`` keeps the test split and trains on everything else,
        without validation. ``"4:1:1"`` pools all rows and splits them by the seed into
        training, validation and test. ``"9:1"`` splits each class into training and test, a
        tenth but at least one image for test, without validation. By default ``"own"`` if the
        set has a test split, else ``"4:1:1"``.
    limit : int or None
        Maximum number of training rows; validation and test shrink in proportion.
    partition : PartitionConfig or None
        How training rows are partitioned among nodes, if the experiment does so.
    shield : str or None
        Disguise applied to all images before anybody sees them, in the notation of
        :func:`pudica.clients.shields.disguises.parse_notation`.
    key : Path or None
        Key file of the disguise. By default a key is derived from the run's seed, which is for
        experiments only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "digits"
    root: AbsolutePath | None = None
    path: AbsolutePath | None = None
    download: bool = False
    label: Label | None = None
    attributes: tuple[Label, ...] = ()
    image_size: int | None = Field(None, ge=MIN_SIDE, le=1024)
    margin: int = Field(0, ge=0, le=64)
    channels: Channels | None = None
    normalize: Literal["none", "dataset", "training"] | None = None
    split: Literal["own", "public", "train-test", "4:1:1", "9:1"] | None = None
    limit: int | None = Field(None, gt=0)
    partition: PartitionConfig | None = None
    shield: str | None = None
    key: AbsolutePath | None = None

    @field_validator("attributes", mode="before")
    @classmethod
    def _wrap_single_attribute(cls, attributes: object) -> object:
        return (attributes,) if isinstance(attributes, str) else attributes

    @field_validator("name")
    @classmethod
    def _validate_name(cls, name: str) -> str:
        return lookup(name).name

    @field_validator("shield")
    @classmethod
    def _normalise_shield(cls, shield: str | None) -> str | None:
        return None if shield is None else format_notation(parse_notation(shield))

    @property
    def uses_training_statistics(self) -> bool:
        """Whether images are normalised by statistics of the training part."""
        disguised = self.shield is not None or self.name == DISGUISED
        return self.normalize == "training" or (self.normalize is None and disguised)

    @model_validator(mode="after")
    def _validate_key(self) -> DataConfig:
        if self.key is not None and self.shield is None:
            raise DataError(
                "key: there is no shield that it could be the key of; of dlmt.shield it is dlmt.key"
            )
        return self

    @model_validator(mode="after")
    def _validate_disguised(self) -> DataConfig:
        if self.name == DISGUISED and self.margin:
            raise DataError("margin: there is no black that could be added to disguised images")
        return self

    @model_validator(mode="after")
    def _validate_path(self) -> DataConfig:
        if self.name == "digits" and self.path is not None:
            raise DataError(
                "'digits' comes with scikit-learn and has no path; "
                "for your own data set name to image-folder or parquet"
            )
        return self

    @model_validator(mode="after")
    def _validate_statistics(self) -> DataConfig:
        statistics = lookup(self.name).statistics
        if self.normalize == "dataset" and self.shield:
            raise DataError(
                "the published mean and standard deviation are of plain images, these are "
                "disguised; allowed: normalize: training, none"
            )
        if self.normalize == "dataset" and statistics is None:
            raise DataError(
                f"'{self.name}' has no published mean and standard deviation; "
                "allowed: normalize: training, none"
            )
        if self.normalize == "dataset" and statistics and self.channels == 1 < len(statistics.mean):
            raise DataError(
                f"the published mean and standard deviation of '{self.name}' are of RGB, "
                "but channels is 1; allowed: normalize: training, none"
            )
        return self
