"""The shipped experiments, and whole runs on slices of real data sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from celeba_files import write_celeba
from cli_helpers import TINY, as_options
from click.testing import Result
from lfwa_files import write_lfwa
from PIL import Image

from pudica import analysis, models
from pudica.simulations.engines import inprocess
from pudica.strategies.loading import load_experiment, shipped
from pudica.strategies.themis.experiment import ThemisExperiment

QUICK = [
    "training={epochs: 1, learning_rate: 0.05}",
    "themis.epochs=1",
    "themis.release={draws: 2}",
    "themis.examiner={model: cnn-tiny, training: {epochs: 1}}",
    "themis.cases={}",
]


def test_the_experiments_that_were_promised_are_there() -> None:
    promised = ["digits", "mnist", "utkface", "cifar10", "cifar10-small", "cifar100", "robustness"]
    assert {f"themis-{name}" for name in promised} <= set(shipped())


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_experiment_is_valid_and_says_what_it_is(name: str) -> None:
    experiment = load_experiment(name, [])
    assert experiment.name == name
    assert len(experiment.description) > 20
    if isinstance(experiment, ThemisExperiment):
        assert all(p.model in models.names() for p in experiment.participants)


def test_tables_one_and_two_are_of_the_papers_models() -> None:
    ten = {
        "AlexNet",
        "DenseNet-121",
        "GoogLeNet",
        "LeNet",
        "PreResNet-20",
        "PreResNet-56",
        "ResNet-20",
        "ResNet-56",
        "VGG11",
        "VGG16",
    }
    assert set(load_experiment("themis-cifar10", []).names()) == ten
    assert load_experiment("themis-utkface", []).names() == ["LeNet", "ResNet-56", "VGG16"]
    assert len(load_experiment("themis-cifar100", []).names()) == 20


def test_dlmts_experiments_have_the_papers_rows() -> None:
    for name, side, rows in (("mnist", 28, 13), ("cifar10", 32, 14), ("cifar10-small", 32, 14)):
        cases = load_experiment(f"dlmt-{name}", []).dlmt.each_case()
        table2 = [case for case in PUBLISHED2 if name != "mnist" or case != "MAT(5)"]
        assert len(table2) == rows
        rivals = [f"Sharma({side}, permute=4)", f"Sharma({side}, noise=50, permute=4)"]
        table3 = [*PUBLISHED3, "Sharma(2)", "Sharma(2, noise=50)", *rivals]
        assert set(cases) == {*table2, *table3}
        assert all(
            case.shield == (None if key == "original" else key) for key, case in cases.items()
        )


PUBLISHED2 = (
    "original",
    "MAT(5)",
    *(f"MAT({v})" for v in (256, 512, 1024, 2048)),
    *(f"MMT({v})" for v in (10, 100, 1000, 10000)),
    *(f"Rise({v})+MMT(1000)" for v in (100, 200, 300, 400)),
)
PUBLISHED3 = ("MAT(256)", "MMT(100)", "MAT(256)+MMT(10)", "MMT(10)+MAT(2048)")


def test_robustness_has_every_kind_of_case() -> None:
    cases = load_experiment("themis-robustness", []).themis.each_case()
    assert {"case0", "case1", "case2", "generalisation", "cheating"} <= set(cases)
    assert sum(name.startswith("random") for name in cases) == 3
    attacks = {attack for case in cases.values() for attack in case.hostile.values()}
    assert attacks == {"nan", "huge", "sign-flip", "wrong-shape", "wrong-key", "empty"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mnist", ["data.limit=256"]),
        ("cifar10", ["data.limit=256"]),
        ("utkface", ["data.limit=256", "data.image_size=32", "data.label=race"]),
        ("att-faces", ["data.limit=200", "data.image_size=32"]),
    ],
)
def test_a_whole_competition_on_a_slice_of_each_real_data_set(
    real_data: Path, tmp_path: Path, name: str, settings: list[str]
) -> None:
    everyone = "participants=[{model: lenet}, {model: cnn-small}]"
    experiment = load_experiment(
        "themis-digits",
        [f"data={{name: {name}, root: {real_data}}}", everyone, *QUICK, *settings],
    )
    inprocess.run(experiment, tmp_path / "run")
    board = pd.read_csv(tmp_path / "run" / "main" / "leaderboard.csv")
    assert sorted(board["model"]) == ["CNN-small", "LeNet"]
    assert board["plain_accuracy"].between(0, 100).all()
    protection = pd.read_json(tmp_path / "run" / "metrics.jsonl", lines=True).query(
        "stage == 'protection' and release == 'trained'"
    )
    values = dict(zip(protection["metric"], protection["value"], strict=True))
    assert values["psnr"] > 0
    assert values["psnr_denoised"] >= values["psnr"]
    assert 0 < values["chance"] < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "size", "cases"),
    [
        ("celeba", partial(write_celeba, young="110", apart=True), (218, 178), 10),
        ("lfwa", write_lfwa, (250, 250), 9),
    ],
    ids=["celeba", "lfwa"],
)
def test_experiments_of_paper_003_run_on_small_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    write: Callable[[Path], list[str]],
    size: tuple[int, int],
    cases: int,
) -> None:
    """All cases of the paper's Tables 2 and 3, and their rows beside the paper's."""
    rng = np.random.default_rng(0)
    for file in write(tmp_path):
        place = tmp_path / file
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(place)
    monkeypatch.setattr("torchvision.datasets.celeba.check_integrity", lambda *_: True)
    small = ["facemix.edges=1", "client.num_gpus=0", "data.image_size=80"]
    training = "facemix.training={epochs: 1, batch_size: 8}"
    experiment = load_experiment(f"facemix-{name}", [f"data.root={tmp_path}", training, *small])
    inprocess.run(experiment, tmp_path / "run")
    table = analysis.facemix_accuracy(tmp_path / "run").set_index("case")
    assert len(table) == cases
    assert table["published"].notna().all()
    assert table["accuracy"].between(0, 100).all()


def test_what_was_taken_for_what_is_said_once_and_recorded(
    pudica: Callable[..., Result], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    for split, count in (("Training", 30), ("Testing", 6)):
        for label in ("cat", "Cat"):
            for number in range(count):
                place = tmp_path / f"own/{split}/{label}/{number}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 255, (8, 8), np.uint8)).save(place)
    (tmp_path / "own/Training/Thumbs.db").touch()
    chosen = as_options({**TINY, "data.name": "image-folder", "data.path": "own"})
    done = pudica("run", "themis-digits", "--engine", "inprocess", "--quiet", *chosen)
    noted = [
        "taken for splits: Training as train; Testing as test",
        f"left out of {tmp_path}/own, since no part of the data: Thumbs.db",
        "the classes 'Cat' and 'cat' differ in case or spaces only: are they one?",
    ]
    assert [line for line in done.stderr.splitlines() if line.startswith("data: ")] == [
        f"data: {note}" for note in noted
    ]
    directory = Path(done.stdout.strip())
    record = json.loads((directory / "run.json").read_text())
    assert record["data"] == noted
    assert record["hardware"]["cpu"]
    assert record["hardware"]["instructions"]
    assert (directory / "events.log").read_text().count("taken for splits") == 1
