"""A node's own words for classes and attributes, and those of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pudica.clients.data import DataConfig, DataError, Splits, load
from pudica.clients.data.vocabulary import rename
from pudica.clients.runtime.node import OwnData

DRINKS = ["tea", "milk", "beer"]


@pytest.fixture
def own(make: Any) -> dict[str, Any]:
    """Parquet files of tea, milk and beer, as value % 3 says; odd values are hot."""
    values = range(24)
    make.parquet(
        values=values,
        drink=[DRINKS[value % 3] for value in values],
        hot=[value % 2 for value in values],
        cheap=[value % 4 == 0 for value in values],
        old=[1] * len(values),
    )
    return {"name": "parquet", "path": make.root / "own.parquet", "label": "drink"}


def drinks(splits: Splits) -> dict[str, set[int]]:
    """Return by class which drinks images of it are of."""
    found: dict[str, set[int]] = {name: set() for name in splits.class_names}
    for part in (splits.train, splits.validation, splits.test):
        values = (part.pixels(slice(None))[:, 0, 0, 0] * 255).round().int().tolist()
        for label, value in zip(part.labels, values, strict=True):
            found[splits.class_names[label]].add(value % 3)
    return found


def test_renamed_classes_are_those_of_the_run(own: dict[str, Any]) -> None:
    new = {"tea": "thé", "beer": "bière"}
    wanted = ["bière", "cidre", "milk", "thé"]
    splits = load(DataConfig(**own, classes=wanted, rename=new), 0)
    assert splits.class_names == wanted
    assert drinks(splits) == {"bière": {2}, "cidre": set(), "milk": {1}, "thé": {0}}
    assert drinks(load(DataConfig(**own, rename=new), 0)) == {"bière": {2}, "milk": {1}, "thé": {0}}


def test_names_may_change_places(own: dict[str, Any]) -> None:
    splits = load(DataConfig(**own, rename={"tea": "milk", "milk": "tea"}), 0)
    assert drinks(splits) == {"beer": {2}, "milk": {0}, "tea": {1}}


def test_two_classes_do_not_become_one(own: dict[str, Any]) -> None:
    for new in ({"tea": "milk"}, {"tea": "drink", "beer": "drink"}):
        with pytest.raises(DataError, match=r"would both be '(milk|drink)'; each needs a name of"):
            load(DataConfig(**own, rename=new), 0)


def test_what_is_renamed_and_is_not_there_is_a_mistake(own: dict[str, Any]) -> None:
    with pytest.raises(
        DataError, match=r"'mlik' is no class and no attribute.*mean 'milk'.*Allowed"
    ):
        load(DataConfig(**own, rename={"mlik": "lait"}), 0)


def test_a_class_that_the_run_lacks_comes_with_advice(own: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"images of 'tea'.*mean 'teas'\?.*data\.rename"):
        load(DataConfig(**own, classes=["beer", "milk", "teas"]), 0)


def test_attributes_are_put_in_the_order_of_the_run(own: dict[str, Any]) -> None:
    asked = {"attributes": ["hot", "cheap", "drink=tea"], "rename": {"hot": "warm"}}
    splits = load(DataConfig(**own, **asked, attribute_names=["drink=tea", "warm"]), 0)
    assert splits.attributes == ["drink=tea", "warm"]
    values = (splits.train.pixels(slice(None))[:, 0, 0, 0] * 255).round().int().numpy()
    expected = np.stack([values % 3 == 0, values % 2 == 1], 1)
    np.testing.assert_array_equal(splits.train.attributes, expected)


def test_an_attribute_that_the_run_asks_for_and_that_is_not_there_is_named(
    own: dict[str, Any],
) -> None:
    config = DataConfig(**own, attributes=["hot", "cheap"], attribute_names=["hott", "cheap"])
    with pytest.raises(DataError, match=r"asks for 'hott'.*'hot', 'cheap'\. Did you mean 'hot'\?"):
        load(config, 0)


def test_a_node_may_have_all_or_no_images_of_what_the_run_asks_for(own: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="every image has 'old'"):
        load(DataConfig(**own, attributes=["old", "hot"]), 0)
    splits = load(DataConfig(**own, attributes=["old", "hot"], attribute_names=["hot", "old"]), 0)
    assert splits.train.attributes[:, 1].all()


@given(st.permutations(["a", "b", "c", "d"]))
def test_any_permutation_of_names_is_a_renaming(target: list[str]) -> None:
    names = ["a", "b", "c", "d"]
    assert rename(names, dict(zip(names, target, strict=True)), "classes") == target


def test_only_data_of_ones_own_are_renamed() -> None:
    with pytest.raises(ValidationError, match="rename: is for images of one's own"):
        OwnData(rename={"a": "b"})
    with pytest.raises(ValidationError, match="is empty"):
        OwnData(name="image-folder", rename={"a": ""})
