"""What lies in a folder of disguised images."""

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
"""Is told how many images are done, and of how many."""


class Manifest(BaseModel):
    """What ``disguise.json`` says.

    Attributes
    ----------
    disguise, key : str
        In the notation of disguises, and the key's fingerprint.
    shape : tuple of int
        Of an image: channels, height, width.
    dtype : str
        Of its values, little-endian, row by row.
    low, high, kind : int, int, str
        Where values can lie, see :class:`~pudica.clients.shields.disguises.Span`.
    source : str
        Tells what was disguised from anything else; without the key it can't be guessed. Empty
        for a disguise that has no secrets.
    layout : {"image-folder", "parquet"}
        What it was, and becomes again.
    labels : list of str
        Columns beside the image.
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
    def _readable(cls, names: list[str]) -> list[str]:
        validate_labels(names)  # as they are: files know them so
        return names

    @field_validator("class_names")
    @classmethod
    def _all_readable(cls, names: dict[str, list[str]]) -> dict[str, list[str]]:
        for classes in names.values():
            validate_labels(classes)
        return names

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        parse_notation(self.disguise)
        if self.low >= self.high or self.dtype != self.span.storage_dtype_name:
            raise ValueError(
                f"no {self.kind} of type {self.dtype} lie in {self.low} to {self.high}"
            )
        return self

    @property
    def span(self) -> Span:
        """Where values can lie."""
        return Span(self.low, self.high, self.kind)

    def shards(self) -> list[Shard]:
        """Return the files of the set, in order."""
        found = []
        for split, total in (("train", self.train), ("test", self.test)):
            count = math.ceil(total / self.rows_per_part)
            for number in range(count):
                start = number * self.rows_per_part
                rows = min(self.rows_per_part, total - start)
                name = f"{split}-{number:05d}-of-{count:05d}.parquet"
                first = start if split == "train" else self.train + start
                found.append(Shard(split, first, rows, name))
        return found


class Shard(NamedTuple):
    """One file: its split, its first row in the whole set, how many rows, its name."""

    split: str
    first: int
    rows: int
    name: str


def read_manifest(folder: Path) -> Manifest:
    """Return what a folder's ``disguise.json`` says; raise DataError if that makes no sense."""
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
    """Return a table as a parquet file, with notes as JSON."""
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
