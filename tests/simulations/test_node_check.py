"""``pudica node check``: a node's own classes and attributes beside those of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from node_files import node_file
from PIL import Image

from pudica.clients.runtime.node import NodeConfig
from pudica.models.errors import RequestError
from pudica.simulations.deployment.checking import CheckResult, check_node
from pudica.simulations.deployment.vocabulary import (
    MOST_NAMES,
    MOST_ROWS,
    Expected,
    build_tables,
    describe_names,
)
from pudica.strategies.loading import load_experiment


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    """Write a folder of a class for each animal, with more images of each."""
    for count, name in enumerate(("hund", "kat", "wolf"), 4):
        for number in range(count):
            file = tmp_path / f"own/{name}/{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 9 * count + number, np.uint8)).save(file)
    return {"name": "image-folder", "path": str(tmp_path / "own")}


def rows(file: Path, **expected: tuple[str, ...]) -> list[list[Any]]:
    """Return the rows of the table of classes."""
    (table,) = build_tables(NodeConfig.read(file), Expected(**expected))
    return [list(row) for row in table.frame.itertuples(index=False)]


def names_result(file: Path, **expected: tuple[str, ...]) -> CheckResult:
    return next(r for r in check_node(file, Expected(**expected)) if r.name == "names")


def test_without_the_runs_names_ones_own_are_shown_with_their_numbers(
    tmp_path: Path, own: dict[str, Any], pudica: Callable[..., Result]
) -> None:
    file = node_file(tmp_path / "node.yaml", data=own)
    assert rows(file) == [
        ["0", "hund", 4, "hund"],
        ["1", "kat", 5, "kat"],
        ["2", "wolf", 6, "wolf"],
    ]
    assert names_result(file).passed
    shown = pudica("node", "check", str(file)).stdout
    assert "This node's classes, by name" in shown
    assert "matched to the run's when the node joins" in shown


def test_each_class_is_shown_beside_its_number_in_the_run(
    tmp_path: Path, own: dict[str, Any]
) -> None:
    file = node_file(tmp_path / "node.yaml", data={**own, "rename": {"kat": "cat", "hund": "dog"}})
    assert rows(file, classes=("cat", "dog", "wolf", "fox")) == [
        ["", "", 0, "3", "fox", "no images here"],
        ["0", "hund", 4, "1", "dog", ""],
        ["1", "kat", 5, "0", "cat", ""],
        ["2", "wolf", 6, "2", "wolf", ""],
    ]
    assert names_result(file, classes=("cat", "dog", "wolf", "fox")).passed


def test_what_does_not_match_fails_and_comes_with_what_to_do(
    tmp_path: Path, own: dict[str, Any], pudica: Callable[..., Result]
) -> None:
    file = node_file(tmp_path / "node.yaml", data=own)
    (tmp_path / "names.txt").write_text("dog\ncat\n\nwolf\n")
    for given in ("dog,cat,wolf", str(tmp_path / "names.txt")):
        result = pudica("node", "check", str(file), "--classes", given)
        assert result.exit_code == 2
        assert "✗ names" in result.stdout
        assert "has images of 'hund', 'kat', which the run's classes lack" in result.stdout
        assert "data.rename" in result.stdout
    assert rows(file, classes=("dog", "cat", "wolf"))[:2] == [
        ["0", "hund", 4, "", "", "refused."],
        ["1", "kat", 5, "", "", "refused. Did you mean 'cat'?"],
    ]


def test_attributes_are_shown_in_the_same_way(tmp_path: Path) -> None:
    data = {"name": "digits", "attributes": ["label=3", "label:5-9", "label=8"]}
    file = node_file(tmp_path / "node.yaml", data={**data, "rename": {"label=3": "three"}})
    asked = ("label:5-9", "three", "label=0")
    _, table = build_tables(NodeConfig.read(file), Expected(attributes=asked))
    assert [row[:-1] for row in map(tuple, table.frame.to_numpy())] == [
        ("2", "label=8", "", ""),
        ("", "", "2", "label=0"),
        ("0", "label=3", "1", "three"),
        ("1", "label:5-9", "0", "label:5-9"),
    ]
    result = names_result(file, attributes=asked)
    assert not result.passed
    assert "the run asks for 'label=0'" in result.message
    assert names_result(file, attributes=asked[:2]).passed


def test_the_model_is_tried_with_the_classes_of_the_run(
    tmp_path: Path, own: dict[str, Any]
) -> None:
    model = "def net(num_classes, channels, image_size):\n    raise ValueError(num_classes)\n"
    (tmp_path / "net.py").write_text(model)
    file = node_file(tmp_path / "node.yaml", data=own, model="custom:./net.py:net")
    tried = {r.name: r for r in check_node(file, Expected(tuple("abcdefg")))}["model"]
    assert not tried.passed
    assert "7" in tried.message


def test_a_node_without_images_of_its_own_has_the_organisers_names(tmp_path: Path) -> None:
    file = node_file(tmp_path / "node.yaml")
    assert build_tables(NodeConfig.read(file), Expected()) == []
    assert "the organiser's" in names_result(file, classes=("a", "b")).message


def test_data_that_cannot_be_read_have_no_table(tmp_path: Path) -> None:
    data = {"name": "image-folder", "path": str(tmp_path / "nowhere")}
    file = node_file(tmp_path / "node.yaml", data=data)
    assert build_tables(NodeConfig.read(file), Expected()) == []
    assert not names_result(file).passed


def test_a_long_table_is_cut_and_says_so(tmp_path: Path, own: dict[str, Any]) -> None:
    file = node_file(tmp_path / "node.yaml", data=own)
    wanted = tuple(f"class-{number}" for number in range(50))
    (table,) = build_tables(NodeConfig.read(file), Expected(wanted))
    assert len(table.frame) == MOST_ROWS
    assert table.title.endswith(f"({MOST_ROWS} of 53)")
    assert table.frame["own_name"][:3].tolist() == ["hund", "kat", "wolf"]


@pytest.mark.parametrize("given", ["", "a,,b", "a,a", "a,\x1b[2J"])
def test_names_that_cannot_be_are_refused(given: str) -> None:
    with pytest.raises(RequestError, match="--classes: ") as caught:
        Expected.read(given, None)
    assert str(caught.value).isprintable()


def test_an_organiser_sees_the_names_that_nodes_are_told() -> None:
    asked = ["data.attributes=['label=3', 'label:5-9']"]
    lines = describe_names(load_experiment("facemix-digits", asked).load_data())
    assert "`pudica node check --classes`): 0,1,2,3,4,5,6,7,8,9" in lines[0]
    assert "`pudica node check --attributes`): label=3,label:5-9" in lines[1]
    assert len(describe_names(load_experiment("themis-digits", []).load_data())) == 1
    assert MOST_NAMES > 10
