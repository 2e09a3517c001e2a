"""A report says what the tables, figures and ledgers of runs say, and lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from hostile_names import FORMULAS, HIDDEN, MARKUP
from written_ledgers import CLIPPED, entry, in_the_clear, labels, write_ledger
from written_runs import competition_rows, write_artefacts, write_run

from pudica import analysis
from pudica.analysis.reproducing import build_command
from pudica.analysis.runs import Run, open_run
from pudica.analysis.spread import format_cell, join_intervals
from pudica.models.errors import RequestError
from pudica.models.files import save_tensors
from pudica.models.printable import escape_hidden
from pudica.strategies.loading import load_experiment

Write = Callable[..., Path]
Rows = list[list[tuple[str, str | None]]]
Tables = list[tuple[str, list[str], Rows]]
INJECTIONS = (
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    '" onload="alert(1)',
    "{{ 7 * 7 }} {% raw %}",
    "</title></svg><img src=x onerror=alert(1)>",
    "id=\"s0\" url(#x) #0072b2 href='#y'",
    "javascript:alert(1)",
)
SHOWN = ("script", "meta", "img", "image", "link", "iframe", "object", "form", "base", "b")


class Page(HTMLParser):
    """What is in a page: tables cell by cell, elements of some kinds, texts, ids, addresses."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tables: Tables = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.handlers: list[str] = []
        self._path: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self._path.append(tag)
        self.handlers += [name for name in values if name.startswith("on")]
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[name] for name in ("href", "src") if name in values]
        self.addresses += re.findall(r"url\((.*?)\)", " ".join(values.values()))
        if tag in SHOWN:
            self.elements.append((tag, values))
        if tag == "table":
            self.tables.append(("", [], []))
        elif tag == "tr" and "tbody" in self._path:
            self.tables[-1][2].append([])
        elif tag == "td":
            self.tables[-1][2][-1].append(("", values.get("data-value")))
        elif tag == "th":
            self.tables[-1][1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._path and self._path.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._path:
            self.scripts.append(data)
        elif "style" not in self._path:
            self.texts.append(data)
        if "td" in self._path:
            text, value = self.tables[-1][2][-1][-1]
            self.tables[-1][2][-1][-1] = (text + data, value)
        elif "th" in self._path:
            self.tables[-1][1][-1] += data
        elif "caption" in self._path:
            title, *rest = self.tables[-1]
            self.tables[-1] = ((title + data).strip(), *rest)  # type: ignore[assignment]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def read_report(runs: Any, path: Path) -> Page:
    return Page(analysis.report(runs, path))


def assert_shows(shown: Tables, tables: dict[str, pd.DataFrame]) -> None:
    """Assert that a page's tables are these, to the last digit."""
    by_title = {title.partition(": mean and 95%")[0]: rest for title, *rest in shown}
    for title, frame in tables.items():
        headings, rows = by_title[title]
        joined = join_intervals(frame)
        assert headings == [str(name).replace("_", " ") for name in joined]
        assert len(rows) == len(frame)
        for place, row in enumerate(rows):
            for name, (text, value) in zip(joined, row, strict=True):
                assert text == format_cell(joined[name].tolist()[place])
                original = frame[name].tolist()[place]
                if isinstance(original, float | int) and not pd.isna(original):
                    assert float(str(value)) == original
                else:
                    assert value is None


@pytest.fixture(scope="module")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two cases with all figures."""
    folder = tmp_path_factory.mktemp("competition") / "run"
    values = {"LeNet": 0.71234567, "ResNet-56": 0.8}
    rows = competition_rows(values, values, {"one": values, "two": values})
    write_run(folder, rows, list(values), cases={"one": {}, "two": {}})
    write_artefacts(folder, ["one"])
    return folder


@pytest.fixture(scope="module")
def page(competition: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read_report(competition, tmp_path_factory.mktemp("page") / "report.html")


def test_its_tables_are_the_runs(page: Page, competition: Path) -> None:
    tables = analysis.tables(competition)
    assert "Beside the paper" in tables  # some of it is missing
    assert [title for title, *_ in page.tables] == list(tables)
    assert_shows(page.tables, tables)


def test_seeds_are_taken_together(small_run: Write, tmp_path: Path) -> None:
    for seed in range(3):
        small_run(f"seed{seed}", seed)
    page = read_report(tmp_path, tmp_path / "report.html")
    assert_shows(page.tables, analysis.tables(tmp_path))
    assert "Leaderboard: mean and 95% interval of 3 seeds" in [title for title, *_ in page.tables]
    assert "seeds 0, 1, 2" in page.text


def test_each_system_has_its_own_tables(small_run: Write, tmp_path: Path) -> None:
    themis = small_run()
    split = write_ledger(tmp_path / "split", [entry(count=1)])
    page = read_report([themis, split], tmp_path / "report.html")
    first, last = analysis.tables(split), analysis.tables(themis)
    titles = [*first, "Releases, all of a record at δ = 1e-05", *last]
    assert [title for title, *_ in page.tables] == titles
    assert_shows(page.tables[: len(first)], first)
    assert_shows(page.tables[-len(last) :], last)
    assert "1 of synthetic, 1 of written" in page.text


def test_it_loads_nothing_and_runs_its_own_script_alone(page: Page) -> None:
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address[0] == "#"} <= {*page.ids}
    assert len(set(page.ids)) == len(page.ids)
    assert "http" not in page.source.replace("http-equiv", "")
    assert "@import" not in page.source
    assert not page.handlers
    assert not {"link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.elements}
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(v["content"] for _, v in page.elements if "http-equiv" in v)
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_the_same_runs_give_the_same_page(page: Page, competition: Path, tmp_path: Path) -> None:
    assert read_report(competition, tmp_path / "again.html").source == page.source


def test_it_has_all_figures_with_their_images(page: Page, competition: Path) -> None:
    assert page.source.count("<svg") == len(analysis.plot(competition))
    assert page.count("image") == 3 + 6  # rows of images; heat maps with their colour bars
    assert "Test images before and after noise" in page.text
    assert "accuracy on noisy images (%)" in page.text


def test_names_can_do_no_harm(tmp_path: Path) -> None:
    hidden = [name for kind, name in HIDDEN.items() if kind != "surrogate"]  # no font has it
    names = [*hidden, *FORMULAS.values(), *MARKUP, *INJECTIONS]
    values = {name: 0.5 + 0.005 * place for place, name in enumerate(names)}
    rows = competition_rows(values, values, {"main": values}, epochs=1, draws=1)
    path = write_run(tmp_path / "run", rows, names)
    settings = yaml.safe_load((path / "experiment.yaml").read_text())
    told = "".join(names)
    (path / "experiment.yaml").write_text(yaml.safe_dump({**settings, "description": told}))
    info = json.loads((path / "run.json").read_text())
    info |= {"experiment": told, "status": told, "reason": told, "data": names, "engine": told}
    (path / "run.json").write_text(json.dumps({**info, "versions": {told: told}, "remarks": names}))
    page = read_report(path, tmp_path / "report.html")
    assert page.source.replace("\n", "").isprintable()
    assert [page.count(tag) for tag in SHOWN] == [1, 5, *[0] * 8]
    assert not page.handlers
    assert all(address.startswith("#") for address in page.addresses)
    board = page.tables[0]
    assert {row[1][0] for row in board[2]} == {escape_hidden(name) for name in names}
    texts = {text.strip() for text in page.texts}
    # In the leaderboard, in a list of notes, and in a figure.
    assert {escape_hidden(name).strip() for name in names} <= texts


def test_an_unfinished_run_is_marked(tmp_path: Path, small_run: Write) -> None:
    started = write_run(tmp_path / "started", [], ["A"], status="running")
    page = read_report([small_run(), started], tmp_path / "report.html")
    assert "Not finished." in page.text
    assert "started: running" in page.text
    assert "run: done" not in page.text
    assert "Not finished." not in read_report(small_run("other"), tmp_path / "other.html").text


@pytest.mark.parametrize("compare", [True, False])
def test_it_says_if_it_holds_plain_test_images(
    tmp_path: Path, small_run: Write, compare: bool
) -> None:
    path = small_run(release={"compare": compare})
    write_artefacts(path, ["main"])
    page = read_report(path, tmp_path / "report.html")
    assert ("Contains plain test images: don’t publish it." in page.text) == compare
    assert "seeds and settings" in page.text


def test_the_guarantee_is_the_ledgers(tmp_path: Path) -> None:
    flawed = [in_the_clear("front gradients", case="paper", trained_front=True)]
    served = entry(case="main", records="test", shield=CLIPPED, count=1)
    path = write_ledger(tmp_path / "run", [entry(count=1), labels(), served, *flawed])
    page = read_report(path, tmp_path / "report.html")
    for text in (
        "ε = 3 (δ = 1e-05) for one record (smashed data, one release)",
        "holds for a training record ε = 3 (δ = 1e-05)",
        "labels are public",
        "holds for a test image ε = 3 (δ = 1e-05)",
        "front gradients are released in the clear",
        "All cases together, for one record: no finite ε .",
    ):
        assert text in page.text
    assert "no differential privacy" not in page.text


def test_runs_that_promise_the_same_say_it_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_ledger(tmp_path / name, [entry(count=1)])
    page = read_report(tmp_path, tmp_path / "report.html")
    assert page.text.count("holds for a training record") == 1


def test_a_competition_and_a_run_without_a_ledger_promise_nothing(
    tmp_path: Path, small_run: Write
) -> None:
    runs = [small_run(), write_ledger(tmp_path / "bare", None)]
    text = read_report(runs, tmp_path / "report.html").text
    assert "A competition promises no differential privacy" in text
    assert "is right on 70.00 % of them after denoising" in text
    assert "There is no ledger of what was released" in text


def run_of(experiment: str, overrides: Sequence[str], **info: str) -> Run:
    resolved = load_experiment(experiment, list(overrides))
    return Run(
        "run", Path(), {"experiment": resolved.name, **info}, yaml.safe_load(resolved.to_yaml())
    )


@pytest.mark.parametrize(
    ("experiment", "overrides"),
    [
        ("themis-digits", []),
        ("themis-digits", ["seed=3", "participants.1.name=second", "themis.examiner=null"]),
        ("themis-digits", ["participants=[{model: mlp, name: it's}]", "description='a: b'"]),
        ("themis-digits", ["themis.cases={a.b: {epochs: 1}, c: {lambda: 1e-3}}"]),
        ("split-digits", ["split.shield={name: none}", "data.image_size=[8, 16]"]),
        ("facemix-digits", ["data.limit=100", "data.root=/data"]),
    ],
)
def test_the_command_runs_the_same_settings(experiment: str, overrides: list[str]) -> None:
    command = build_command(run_of(experiment, overrides, engine="ray"))
    assert command is not None
    words = shlex.split(command)
    assert words[:3] == ["pudica", "run", experiment]
    assert words[-2:] == ["--engine", "ray"]
    changes = words[4:-2:2]
    assert set(words[3:-2:2]) <= {"--set"}
    assert load_experiment(experiment, changes) == load_experiment(experiment, overrides)
    assert len(changes) == len(overrides)


def test_what_no_command_can_tell_is_a_file(tmp_path: Path, small_run: Write) -> None:
    other = run_of("themis-digits", ["name=mine"], engine="ray")
    assert build_command(other) is None
    later = run_of("themis-digits", [], engine="ray")
    assert build_command(later) == "pudica run themis-digits --engine ray"
    later.settings["themis"]["added_later"] = 1
    assert build_command(later) is None
    page = read_report(small_run(), tmp_path / "report.html")
    assert "pudica run experiment.yaml --engine inprocess" in page.text
    assert "name: synthetic" in page.text


def test_no_command_repeats_what_real_nodes_did(tmp_path: Path) -> None:
    run = write_shipped(tmp_path / "run", "themis-digits")
    assert "no command of one machine repeats it" in read_report(run, tmp_path / "a.html").text
    assert build_command(open_run(run)) is None


def test_only_a_report_is_replaced(tmp_path: Path, small_run: Write) -> None:
    path = tmp_path / "new" / "report.html"
    run = small_run()
    assert analysis.report(run, path) == path
    before = path.read_bytes()
    analysis.report(str(run), str(path))
    assert path.read_bytes() == before
    path.write_text("<!doctype html>my thesis")
    with pytest.raises(RequestError, match="is no report, so it is not replaced"):
        analysis.report(run, path)
    assert "thesis" in path.read_text()
    with pytest.raises(RequestError, match="is a folder"):
        analysis.report(run, tmp_path)
    with pytest.raises(RequestError, match="can't write"):
        analysis.report(run, path / "report.html")


def write_shipped(path: Path, experiment: str) -> Path:
    """Write a run of a shipped experiment in which nothing was measured."""
    resolved = load_experiment(experiment, [])
    path.mkdir()
    info = {"system": resolved.system, "experiment": experiment, "status": "done"}
    (path / "run.json").write_text(json.dumps({**info, "nodes": resolved.names()}))
    (path / "experiment.yaml").write_text(resolved.to_yaml())
    (path / "metrics.jsonl").write_text("")
    return path


def test_attack_pictures_are_shown_and_marked(tmp_path: Path) -> None:
    run = write_shipped(tmp_path / "run", "facemix-digits")
    for folder in ("plots", "mixed"):
        (run / folder).mkdir()
    for kind in ("separation", "reconstruction"):
        (run / "plots" / f"mixed-{kind}.png").write_bytes(b"a picture")
        row = {"stage": f"attack {kind}", "round": 0, "node": "cloud", "case": "mixed"}
        line = json.dumps({**row, "metric": "success", "value": 0.5})
        (run / "mixed" / f"attack-{kind}.jsonl").write_text(line)
    page = read_report(run, tmp_path / "report.html")
    assert f"data:image/png;base64,{base64.b64encode(b'a picture').decode()}" in page.addresses
    assert "Contains images and what attacks rebuilt of them: don’t publish it. In run ." in (
        " ".join(page.text.split())
    )


def test_images_of_owners_are_shown_and_marked(tmp_path: Path) -> None:
    run = write_shipped(tmp_path / "run", "dlmt-digits")
    (run / "original").mkdir()
    images = {"received": torch.arange(512.0).reshape(8, 1, 8, 8)}
    save_tensors(run / "original" / "seen.safetensors", images, {})
    page = read_report(run, tmp_path / "report.html")
    assert page.count("image") == 1
    assert "Contains owners' images, disguised and undone: don’t publish it." in page.text
