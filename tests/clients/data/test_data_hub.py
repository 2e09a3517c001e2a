"""Sets of the Hugging Face Hub: fetched once, when asked, and read as parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from pudica.clients.data import DataConfig, DataError, load
from pudica.clients.runtime.node import OwnData
from pudica.models.errors import RequestError

NAME = "somebody/cats-and-dogs"


def rows(values: range, folder: Path) -> datasets.Dataset:
    """Return even images, each a file as in an image folder, of which every other is a dog."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    images = [str(folder / f"{value}.png") for value in values]
    for value, image in zip(values, images, strict=True):
        Image.new("RGB", (9, 9), (value, 0, 0)).save(image)
    labels = [value % 2 for value in values]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """What the Hub is asked for; it knows one set."""
    asked: list[tuple[Any, ...]] = []

    def answer(*what: Any) -> datasets.DatasetDict:
        asked.append(what)
        if what[0] != NAME:
            raise ConnectionError("no such set")
        parts = {"train": range(12), "test": range(50, 54)}
        return datasets.DatasetDict({name: rows(part, tmp_path) for name, part in parts.items()})

    monkeypatch.setattr(datasets, "load_dataset", answer)
    return asked


def config(**more: Any) -> DataConfig:
    return DataConfig(**{"source": "hub", "name": NAME, **more})


def test_a_set_is_fetched_once_and_only_when_asked(asked: list[Any]) -> None:
    with pytest.raises(DataError, match=r"was not found.*download=true"):
        load(config(), 0)
    assert asked == []
    splits = load(config(download=True), 0)
    assert splits.class_names == ["cat", "dog"]
    values = (splits.test.pixels(slice(None))[:, 0, 0, 0] * 255).round()
    assert values.tolist() == [50, 51, 52, 53]
    assert splits.test.labels.tolist() == [0, 1, 0, 1]
    load(config(download=True), 1)
    assert load(config(), 0).fingerprint == splits.fingerprint
    assert asked == [(NAME, None)]


def test_one_of_several_configurations(asked: list[Any]) -> None:
    load(config(name=f"{NAME}:small", download=True), 0)
    assert asked == [(NAME, "small")]


def test_what_can_not_be_fetched_is_named_and_leaves_nothing(
    asked: list[Any], cache_folder
) -> None:
    with pytest.raises(DataError, match=r"'no/thing' can't be fetched .* Hub: no such set"):
        load(config(name="no/thing", download=True), 0)
    assert [path.suffix for path in (cache_folder / "hub").iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "a/../b", "a b/c", "a/b/c", "", "a/b:"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is none of the Hub"):
        config(name=name)


def test_an_organiser_makes_no_node_fetch_anything() -> None:
    with pytest.raises(RequestError, match=r"name it, with source: hub, if this node is to use"):
        OwnData().apply_to(config(download=True))
    own = OwnData(source="hub", name=NAME).apply_to(config(download=True))
    assert (own.source, own.name, own.download) == ("hub", NAME, False)
