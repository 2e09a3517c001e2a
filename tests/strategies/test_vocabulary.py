"""Classes mean the same on all nodes of a run: they are matched, or compared, by name."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from flwr.app import Context
from PIL import Image
from torch import nn
from torch.utils.data import Subset, TensorDataset

from pudica.clients import Edge, InferenceEdge, Participant
from pudica.clients.data import DataConfig, DataError, load
from pudica.clients.data.examples import hash_classes, list_classes
from pudica.clients.runtime.node import OwnData
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_server_context
from pudica.strategies import FaceMix, SplitLearning, Themis
from pudica.strategies.core.joining import base_assignments
from pudica.strategies.loading import load_experiment

NAMES = ("zoe", "adam", "mia")
X, Y = torch.rand(24, 1, 4, 4), torch.arange(24) % 3


class Named(TensorDataset):
    """Images whose classes have names, as torchvision's ImageFolder has them."""

    def __init__(self, *classes: str) -> None:
        super().__init__(X, Y)
        self.classes = list(classes)


USUAL, OTHER = Named("cat", "dog", "wolf"), Named("dog", "cat", "wolf")


def data_of(context: Context) -> tuple[str, Any]:
    """Adam numbers his classes otherwise than the two others, and hides it in a subset."""
    place = int(context.node_config["partition-id"])
    return NAMES[place], Subset(OTHER, range(24)) if place == 1 else USUAL


def participant(context: Context) -> Participant:
    name, data = data_of(context)
    return Participant(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), data, data, name=name)


def edge(context: Context) -> Edge:
    name, data = data_of(context)
    front = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    return Edge(front, data, back=nn.Linear(4, 3), name=name)


def split_learning(**more: Any) -> SplitLearning:
    front = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    return SplitLearning(front=front, back=nn.Linear(4, 3), **more)


def stages() -> tuple[nn.Module, nn.Module, nn.Module]:
    main = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Flatten())
    return nn.Conv2d(1, 2, 3, padding=1), main, nn.Linear(32, 3)


def inference_edge(context: Context) -> InferenceEdge:
    name, data = data_of(context)
    pre, _, post = stages()
    return InferenceEdge(pre, post, data, train=data, name=name)


def facemix(**more: Any) -> FaceMix:
    return FaceMix(*stages(), batch_size=8, request=8, **more)


@pytest.mark.parametrize(
    ("app", "strategy"),
    [
        (Participant.app(participant), Themis),
        (Edge.app(edge), split_learning),
        (InferenceEdge.app(inference_edge), facemix),
    ],
    ids=["themis", "split", "facemix"],
)
def test_who_numbers_its_classes_otherwise_is_left_out_by_name(
    app: Any, strategy: Any, tmp_path: Path
) -> None:
    build_server_context({})
    run = strategy(min_nodes=2, record=tmp_path / "run")
    run.start(InProcessGrid(app, 3, {}), num_rounds=1)
    assert set(run.cohort.nodes) == {"zoe", "mia"}
    told = (tmp_path / "run" / "events.log").read_text()
    assert "adam: its classes have other names than those of most, or another order" in told
    assert not any(word in told for word in ("cat", "dog", "wolf"))


@pytest.mark.parametrize(("owns", "stay"), [(USUAL, {"zoe", "mia"}), (OTHER, {"adam"})])
def test_the_names_of_a_cloud_that_trains_count(owns: Any, stay: set[str], tmp_path: Path) -> None:
    """However many edges there are that number their classes otherwise than the model's owner."""
    build_server_context({})
    run = facemix(min_nodes=1, train=owns, record=tmp_path / "run")
    run.start(InProcessGrid(InferenceEdge.app(inference_edge), 3, {}), num_rounds=1)
    assert set(run.cohort.nodes) == stay
    told = (tmp_path / "run" / "events.log").read_text()
    assert "its classes have other names than the server's, or another order" in told
    assert not any(word in told for word in ("cat", "dog", "wolf"))


def test_data_without_names_are_taken_as_they_are() -> None:
    odd = TensorDataset(X, Y)
    for classes in (None, 10, np.arange(3), [0, 1, 2]):
        odd.classes = classes
        assert hash_classes(odd) == ""
    assert list_classes(Subset(USUAL, [0])) == ["cat", "dog", "wolf"]
    assert hash_classes(USUAL) != hash_classes(OTHER)


def test_a_deployed_run_says_its_classes_and_a_node_matches_its_own(tmp_path: Path) -> None:
    experiment = load_experiment("themis-digits", [])
    name = experiment.names()[0]
    here, there = (
        base_assignments(experiment, "run", deployed)[name] for deployed in (False, True)
    )
    assert here["data"].classes is None
    assert there["data"].classes == tuple("0123456789")
    for label in (7, 3):
        for number in range(4):
            place = tmp_path / f"own/{label}/{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 9 * label + number, np.uint8)).save(place)
    own = OwnData(name="image-folder", path=tmp_path / "own").apply_to(there["data"])
    splits = load(own, 0)
    assert splits.num_classes == 10
    values = (splits.train.pixels(slice(None))[:, 0, 0, 0] * 255).round().long() // 9
    assert splits.train.labels.tolist() == values.tolist()
    (tmp_path / "own/3").rename(tmp_path / "own/three")
    with pytest.raises(DataError, match="has images of 'three', which the run's classes lack"):
        load(own, 0)


def test_a_deployed_run_says_its_attributes_and_an_edge_matches_its_own(tmp_path: Path) -> None:
    experiment = load_experiment("facemix-digits", ["data.attributes=['label=3', 'label:5-9']"])
    name = experiment.names()[0]
    here, there = (
        base_assignments(experiment, "run", deployed)[name]["data"] for deployed in (False, True)
    )
    assert here.attribute_names is None
    assert there.attribute_names == ("label=3", "label:5-9")
    rows = {"odd": [n % 2 for n in range(12)], "three": [int(n == 3) for n in range(12)]}
    write_parquet(tmp_path / "own.parquet", label=[str(n % 10) for n in range(12)], **rows)
    own = {"name": "parquet", "path": tmp_path, "label": "label"}
    called = {"odd": "label:5-9", "three": "label=3"}
    chosen = OwnData(**own, attributes=[*called, "label=7"], rename=called)
    splits = load(chosen.apply_to(there), 0)
    assert splits.attributes == ["label=3", "label:5-9"]
    for part in (splits.train, splits.validation, splits.test):
        pixels = (part.pixels(slice(None))[:, 0, 0, 0] * 255).round().long()
        expected = torch.stack([pixels == 3, pixels % 2 == 1], 1).long()
        assert part.attributes.tolist() == expected.tolist()
    assert any("attributes are numbered as the run names them" in note for note in splits.notes)
    with pytest.raises(DataError, match=r"the run asks for 'label=3', 'label:5-9'.*lack: none"):
        load(OwnData(**own).apply_to(there), 0)


def write_parquet(file: Path, **columns: Any) -> None:
    """Write even images of the values 0, 1, 2, …."""
    images = []
    for value in range(len(columns["label"])):
        stream = BytesIO()
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": None})
    pq.write_table(pa.table({"image": images, **columns}), file)


def test_an_organiser_does_not_say_how_a_nodes_own_data_are_read(tmp_path: Path) -> None:
    """Which images are for test, above all: a node would train on them, or show them."""
    asked = DataConfig(name="image-folder", splits={"train": "*"}, label="label", attributes=["x"])
    own = OwnData(name="parquet", path=tmp_path, splits={"train": ["a"], "test": ["b"]})
    read = own.apply_to(asked)
    assert (read.name, read.source, read.label, read.attributes) == ("parquet", "here", None, ())
    assert {split: [*own] for split, own in read.splits.items()} == {"train": ["a"], "test": ["b"]}
    assert OwnData(path=tmp_path).apply_to(asked).splits is None
    theirs = DataConfig(source="hub", name="somebody/cats", min_per_class=50)
    assert OwnData(name="parquet", path=tmp_path).apply_to(theirs).min_per_class == 1
    assert OwnData(name="parquet", path=tmp_path).apply_to(theirs).source == "here"
    renamed = DataConfig(name="image-folder", rename={"a": "b"})
    assert OwnData(name="parquet", path=tmp_path).apply_to(renamed).rename == {}
    assert OwnData(path=tmp_path).apply_to(renamed).rename == {"a": "b"}
