"""The manifest of a folder of disguised images, and its shards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from pudica.clients.data.errors import DataError
from pudica.clients.shields.disguises import Span, parse_notation
from pudica.models.naming import validate_labels

MANIFEST = "disguise.json"
IMAGE = "image"

ProgressCallback = Callable[[int, int], None]
"""Called with the number of images done and the total."""


class Manifest(BaseModel):
    """The content of ``disguise.json``.

    Attributes
    ----------
    disguise, key : str
        The disguise in its notation, and the key's fingerprint.
    shape : tuple of int
        Shape of an image: channels, height, width.
    dtype : str
        Type of its values, little-endian, row-major.
    low, high, kind : int, int, str
        Range and kind of the values, see :class:`~pudica.clients.shields.disguises.Span`.
    source : str
        Keyed tag that identifies the disguised data set; unguessable without the key. Empty for
        a disguise without secrets.
    layout : {"image-folder", "parquet"}
        Layout of the original, which is restored.
    labels : list of str
        Columns besides the image.
    class_names : dict of str to list of str
    train, test, rows_per_part : int
    complete : bool
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["pudica-disguised-1"] = "pudica-disguised-1"
    disguise: str
    key: str = Field(pattern=r"^[0-9a-f]{16}$")
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    dtype: Literal["uint8", "int16", "int32", "int64", "float32"]
    low: int
    high: int
    kind: Literal["pixels", "integers", "numbers"]
    source: str
    layout: Literal["image-folder", "parquet"]
    labels: list[str]
    class_names: dict[str, list[str]]
    train: PositiveInt
    test: NonNegativeInt
    rows_per_part: PositiveInt
    complete: bool = False

    @field_validator("labels")
    @classmethod
    def _validate_labels(cls, names: list[str]) -> list[str]:
        validate_labels(names)  # not normalised: the files spell them this way
        return names

    @field_validator("class_names")
    @classmethod
    def _validate_class_names(cls, names: dict[str, list[str]]) -> dict[str, list[str]]:
        for classes in names.values():
            validate_labels(classes)
        return names

    @model_validator(mode="after")
    def _validate_values(self) -> Self:
        parse_notation(self.disguise)
        if self.low >= self.high or self.dtype != self.span.storage_dtype_name:
            raise ValueError(
                f"no {self.kind} of type {self.dtype} lie in {self.low} to {self.high}"
            )
        return self

    @property
    def span(self) -> Span:
        """Range and kind of the values."""
        return Span(self.low, self.high, self.kind)

    def shards(self) -> list[Shard]:
        """List the shards of the set, in order."""
        shards = []
        for split, total in (("train", self.train), ("test", self.test)):
            count = math.ceil(total / self.rows_per_part)
            for number in range(count):
                start = number * self.rows_per_part
                rows = min(self.rows_per_part, total - start)
                name = f"{split}-{number:05d}-of-{count:05d}.parquet"
                first = start if split == "train" else self.train + start
                shards.append(Shard(split, first, rows, name))
        return shards


class Shard(NamedTuple):
    """One file: its split, its first row in the whole set, its number of rows, its name."""

    split: str
    first: int
    rows: int
    name: str


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's ``disguise.json``; raise DataError if it is missing or damaged."""
    file = folder / MANIFEST
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{file} is damaged: {where}: {first['msg']}") from error


def parquet_bytes(table: pa.Table, note: dict[str, object]) -> bytes:
    """Encode a table as a parquet file, with ``note`` as JSON metadata."""
    sink = BytesIO()
    metadata = {key: json.dumps(value) for key, value in note.items()}
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        use_dictionary=[name for name in table.column_names if name != IMAGE],
        write_statistics=False,
    )
    return sink.getvalue()
