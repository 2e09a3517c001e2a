"""FaceMix from the command line, as a user meets it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import as_options
from click.testing import Result
from matplotlib.axes import Axes
from typer.testing import CliRunner

from pudica import analysis
from pudica.models.errors import RequestError
from pudica.simulations.cli import app

Command = Callable[..., Result]

TINY = {
    "data.limit": "200",
    "facemix.training.epochs": "2",
    "facemix.cases": "{cloud: {place: cloud}, edge: {place: edge}, "
    "mixed: {shield: {name: mixing, group: 16}}}",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the tests' experiment, once for all."""
    out = tmp_path_factory.mktemp("finished")
    options = ("--engine", "inprocess", "--out", str(out), *as_options(TINY))
    result = CliRunner().invoke(app, ["run", "facemix-digits", *options])
    assert result.exit_code == 0, result.output
    for title in (
        "Accuracy on test images, and what the edge pays",
        "What crosses for one image, over 15 and 30 Mbit/s",
    ):
        assert title in result.stdout
    return Path(result.stdout.splitlines()[-1])


@pytest.fixture
def directory(finished: Path, tmp_path: Path) -> Path:
    """The run's directory, of which the test may do what it likes."""
    return Path(shutil.copytree(finished, tmp_path / "out" / finished.name))


def test_a_run_ends_with_its_tables_its_figures_and_its_directory(
    pudica: Command, directory: Path
) -> None:
    assert json.loads((directory / "run.json").read_text())["status"] == "done"
    drawn = {path.name for path in (directory / "plots").iterdir()}
    assert drawn == {"training.png", "trade-off.png"}
    table = analysis.facemix_accuracy(directory).set_index("case")
    assert table["edge_share"].tolist()[:2] == [0, 100]
    crossing = analysis.facemix_transmission(directory, up=8, down=8, delay=0).set_index("case")
    each = crossing["bytes_up"] + crossing["bytes_down"]
    assert crossing["milliseconds"].tolist() == pytest.approx((each / 1e3).tolist(), rel=1e-3)
    assert crossing["input"].tolist() == ["in the clear", "none", "behind the shield"]
    assert len(analysis.facemix_attributes(directory)) == 3 * 5
    told = pudica("privacy", directory)
    assert "features, mixing" in told.stdout


@pytest.mark.usefixtures("figures")
def test_attacks_go_into_the_runs_tables(pudica: Command, directory: Path) -> None:
    options = ("--case", "mixed", "--epochs", "1", "--images", "16", "--requests", "1")
    people = ("--data", "digits", "--set", "limit=200")
    result = pudica("attack", directory, *options, *people)
    assert result.exit_code == 0, result.stderr
    table = analysis.facemix_accuracy(directory).set_index("case")
    kinds = ("attributes", "identity", "separation", "reconstruction")
    attacks = [f"attack_{name}" for name in kinds]
    assert table.loc["mixed", attacks].notna().all()
    assert table.loc["cloud", attacks].isna().all()
    assert len(analysis.facemix_reconstructions(directory)) == 2
    drawn = {path.name for path in (directory / "plots").iterdir()}
    pictures = {f"mixed-{kind}.png" for kind in ("identity", "separation", "reconstruction")}
    assert pictures | {"attributes.png"} <= drawn
    assert "mixed-separation.png" in result.stdout


def test_cases_of_several_runs_are_drawn_together(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []
    plot = Axes.plot

    def noted(self: Axes, x: float, y: float, *rest: Any, **more: Any) -> Any:
        drawn.append((x, y))
        return plot(self, x, y, *rest, **more)

    monkeypatch.setattr(Axes, "plot", noted)
    labels: list[str] = []
    annotate = Axes.annotate

    def labelled(self: Axes, text: str, *rest: Any, **more: Any) -> Any:
        labels.append(text)
        return annotate(self, text, *rest, **more)

    monkeypatch.setattr(Axes, "annotate", labelled)
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    found = analysis.facemix_trade_off([directory, other], tmp_path / "both.png")
    assert found.read_bytes()[:4] == b"\x89PNG"
    table = analysis.facemix_accuracy(directory)
    shares = {*zip(table["edge_share"], table["accuracy"], strict=True)}
    assert shares <= {*drawn}
    assert drawn.count(min(shares)) == 2
    assert {f"mixed ({directory.name})", "mixed (other)"} <= {*labels}
    rows = (other / "metrics.jsonl").read_text().splitlines()
    kept = [row for row in rows if '"case": "cloud"' in row]
    (other / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    with pytest.raises(RequestError, match="two cases at least"):
        analysis.facemix_trade_off(other, tmp_path / "one.png")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ("--case", "edge"),
            "no case 'edge' in which something leaves the nodes; allowed: cloud, mixed",
        ),
        (("--case", "other"), "no case 'other' in which something leaves the nodes"),
        (("--kind", "magic"), "unknown attack 'magic'"),
        (("--kind", "identity"), "name images of known people with --data"),
        (("--case", "cloud", "--kind", "separation"), "nothing is mixed"),
        (("--set", "limit=3"), "--set: only with --data"),
        (
            ("--kind", "identity", "--data", "digits", "--set", "limit=20"),
            "2 images of known people",
        ),
        (("--data", "digits", "--set", "margin=2"), "the model is for 1x8x8"),
    ],
)
def test_wrong_requests_are_explained(
    pudica: Command, directory: Path, words: tuple[str, ...], why: str
) -> None:
    result = pudica("attack", directory, *words)
    assert result.exit_code == 2
    assert why in result.stderr
