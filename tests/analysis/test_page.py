"""What the public sees of a competition."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hostile_names import FORMULAS, HIDDEN, MARKUP

from pudica import analysis
from pudica.models.errors import RequestError
from pudica.models.printable import escape_hidden
from pudica.simulations.engines import inprocess
from pudica.strategies.core.spreadsheets import read_csv
from pudica.strategies.loading import load_experiment

NAME = "<script>alert(1)</script> & co".replace("/", "|")
SHORT = (
    *("data.limit=160", "training.epochs=1", "themis.epochs=1", "themis.examiner=null"),
    *(f"participants=[{{model: softmax, name: '{NAME}'}}, {{model: mlp}}]", "description=a < b"),
)


class Tags(HTMLParser):
    """Collects tags, and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for key, value in attrs if key in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, compare in {"rehearsal": "true", "real": "false"}.items():
        settings = [*SHORT, f"themis.release.compare={compare}"]
        inprocess.run(load_experiment("themis-digits", settings), folder / name)
    return {name: folder / name for name in ("rehearsal", "real")}


def test_a_page_holds_ranks_and_protection_and_nothing_from_elsewhere(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    written = analysis.publish(runs["real"], tmp_path / "public")
    page = Tags((tmp_path / "public" / "index.html").read_text())
    assert "script" not in page.tags
    assert NAME in page.text
    assert "a < b" in page.text
    assert "PSNR" in page.text
    assert {path.name for path in written} == {"index.html", *page.references}
    assert all(path.is_file() for path in written)
    board = pd.read_csv(tmp_path / "public" / "leaderboard.csv")
    own = pd.read_csv(runs["real"] / "main" / "leaderboard.csv")
    assert board["model"].tolist() == own["model"].tolist()
    assert board["dropouts"].tolist() == [0, 0]


def test_a_page_says_who_is_not_ranked_and_what_was_no_competition(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs["real"], copy)
    info = json.loads((copy / "run.json").read_text())
    told = {"nodes": [*info["nodes"], "Eve <b>"], "remarks": ["a rehearsal: all is known"]}
    (copy / "run.json").write_text(json.dumps({**info, **told}))
    analysis.publish(copy, tmp_path / "public")
    text = (tmp_path / "public" / "index.html").read_text()
    assert "This is a rehearsal: all is known." in text
    assert "They are not given the images without it" not in text
    assert "never came: Eve &lt;b&gt;." in text
    analysis.publish(runs["real"], tmp_path / "other")
    assert "Not ranked" not in (tmp_path / "other" / "index.html").read_text()


def test_plain_test_images_are_not_published(runs: dict[str, Path], tmp_path: Path) -> None:
    analysis.publish(runs["rehearsal"], tmp_path)
    assert not list(tmp_path.glob("*.png"))
    assert "A rehearsal" in (tmp_path / "index.html").read_text()


def test_only_competitions_of_which_a_stage_is_over_have_a_page(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    info = json.loads((runs["real"] / "run.json").read_text())
    for change, why in (
        ({"status": "running"}, "no stage of it is over"),
        ({"system": "split"}, "is for"),
    ):
        copy = tmp_path / str(next(iter(change)))
        copy.mkdir()
        for file in ("experiment.yaml", "metrics.jsonl"):
            (copy / file).write_bytes((runs["real"] / file).read_bytes())
        (copy / "run.json").write_text(json.dumps({**info, **change}))
        with pytest.raises(RequestError, match=why):
            analysis.publish(copy, tmp_path / "public")
        assert not (tmp_path / "public").exists()


@pytest.mark.parametrize(
    "name", [*{**HIDDEN, "surrogate": "\x9b"}.values(), *FORMULAS.values(), *MARKUP]
)
def test_names_of_a_run_from_elsewhere_do_no_harm(
    tmp_path: Path, small_run: Callable[..., Path], name: str
) -> None:
    run = small_run()
    for file in ("run.json", "metrics.jsonl"):
        text = (run / file).read_text().replace('"LeNet"', json.dumps(name))
        (run / file).write_text(text.replace('"synthetic"', json.dumps(f"of {name}")))
    analysis.publish(run, tmp_path / "public")
    text = (tmp_path / "public" / "index.html").read_text()
    assert text.replace("\n", "").isprintable()
    page = Tags(text)
    assert not {"script", "b", "link"} & {*page.tags}
    assert escape_hidden(name) in page.text
    board = read_csv(tmp_path / "public" / "leaderboard.csv", "model")
    assert name in board["model"].tolist()
    if name in FORMULAS.values():
        assert f"'{name}" in pd.read_csv(tmp_path / "public" / "leaderboard.csv")["model"].tolist()
