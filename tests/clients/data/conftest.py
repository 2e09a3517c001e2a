"""Tiny data sets in every layout that is understood."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pudica.clients.data import cache


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PUDICA_CACHE", str(folder))
    monkeypatch.setenv("PUDICA_DATA", str(tmp_path / "nothing-here"))
    return folder


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Count decodes: one entry each."""
    done: list[Path] = []

    def counted(*arguments) -> list[str]:
        done.append(arguments[1])
        return original(*arguments)

    original = cache.decode
    monkeypatch.setattr(cache, "decode", counted)
    return done


def picture(value: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Image.Image:
    """Return an even image whose (first channel's) pixels all are ``value``."""
    return Image.new(mode, size, value if mode != "RGB" else (value, 100, 200))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


class Makers:
    """Writes sets below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def image(self, file: str, value: int = 0, **options) -> Path:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(value, **options).save(path)
        return path

    def image_folder(self, name: str = "own", per_class: int = 6, prefix: str = "") -> Path:
        """Class ``a`` has the values 0, 1, …, class ``b`` 100, 101, …."""
        for start, label in ((0, "a"), (100, "b")):
            for i in range(per_class):
                self.image(f"{name}/{prefix}{label}/{i}.png", start + i)
        return self.root / name

    def utkface(self, count: int = 12) -> Path:
        """Gender is 1 where the value is odd; all round 8 years old, race 0 to 4."""
        for i in range(count):
            self.image(f"UTKFace/8_{i % 2}_{i % 5}_2017010914240{i:04d}.jpg.chip.png", i)
        return self.root / "UTKFace"

    def parquet(
        self,
        file: str = "own.parquet",
        values: range | list[int] = range(12),
        images: list[bytes | None] | None = None,
        features: dict | None = None,
        **columns,
    ) -> Path:
        """Write one image for each value; without ``columns`` the label is value % 3."""
        values = list(values)
        contents = images or [encoded(picture(value)) for value in values]
        table = pa.table(
            {
                "image": pa.array(
                    [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(contents)],
                    pa.struct({"bytes": pa.binary(), "path": pa.string()}),
                ),
                **(columns or {"label": [value % 3 for value in values]}),
            }
        )
        described = {"image": {"_type": "Image"}, **(features or {})}
        metadata = json.dumps({"info": {"features": described}})
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            table.replace_schema_metadata({"huggingface": metadata}), path, row_group_size=5
        )
        return path

    def mnist(self, train: int = 20, test: int = 7, name: str = "MNIST") -> Path:
        """Write torchvision's raw files; image i of a part has the value i and label i % 10."""
        folder = self.root / name / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        for part, count in (("train", train), ("t10k", test)):
            pixels = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28).tobytes()
            header = struct.pack(">IIII", 2051, count, 28, 28)
            (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels)
            labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(
                struct.pack(">II", 2049, count) + labels
            )
        return self.root


@pytest.fixture
def make(tmp_path: Path) -> Makers:
    root = tmp_path / "data"
    root.mkdir()
    return Makers(root)


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Return PNG bytes of an even image: ``encode(value, size=…, mode=…)``."""
    return lambda value, **options: encoded(picture(value, **options))
