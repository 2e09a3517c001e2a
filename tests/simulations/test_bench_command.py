"""``make bench``: rows are printed and kept as they come, one by one, chosen by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from pudica.clients.data import catalogue
from pudica.simulations.benchmarks import run, selection
from pudica.simulations.benchmarks.__main__ import main
from pudica.simulations.benchmarks.measure import Benchmark, Samples, make_row
from pudica.simulations.benchmarks.selection import select_benchmarks
from pudica.simulations.benchmarks.table import HEADER, format_benchmark, format_row

OURS, RIVAL = [1.0, 3.0, 2.0], [2.0, 2.0, 2.0]
REAL = list(selection.BENCHMARKS)


def fake(name: str, bar: float | None = 1.0, **needs: object) -> Benchmark:
    """Return a row of which nothing is measured: 2.0 against 2.0, or as many as are asked for."""
    return Benchmark(
        name,
        f"what {name} is",
        "s",
        bar,
        lambda repeats: Samples(OURS[:repeats], RIVAL[:repeats]),
        **needs,  # type: ignore[arg-type]
    )


def fails(_: int) -> Samples:
    raise RuntimeError("no such engine")


def is_stopped(_: int) -> Samples:
    raise KeyboardInterrupt


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Measure fake rows in an empty directory: ``bench(rows, "NAME", "--option")``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PUDICA_DATA", str(tmp_path / "data"))
    app = typer.Typer()
    app.command()(main)

    def call(rows: list[Benchmark], *arguments: str) -> Result:
        monkeypatch.setattr(selection, "BENCHMARKS", rows)
        result = CliRunner().invoke(app, list(arguments))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def read_table(path: str = "results/bench.csv") -> pd.DataFrame:
    return pd.read_csv(path).set_index("name")


def test_rows_are_printed_and_kept(bench: Callable[..., Result]) -> None:
    done = bench([fake("one"), fake("two", bar=None)], "--repeats", "3")
    assert done.exit_code == 0
    header, *lines = done.stdout.splitlines()
    assert header == HEADER
    assert [line.split() for line in lines] == [
        ["one", "2", "2", "s", "1.00", "0.50–1.50", "1", "yes"],
        ["two", "2", "2", "s", "1.00", "0.50–1.50"],
    ]
    table = read_table()
    assert list(table.index) == ["one", "two"]
    columns = ["ours", "rival", "ratio", "low", "high", "runs"]
    assert list(table.loc["one", columns]) == [2.0, 2.0, 1.0, 0.5, 1.5, 3]


def test_what_is_measured_now_is_said_before_it_is_measured(bench: Callable[..., Result]) -> None:
    stopped = bench([fake("one"), replace(fake("two"), measure=is_stopped)])
    assert "1/2  one: what one is" in stopped.stderr
    assert "2/2  two: what two is" in stopped.stderr
    assert "what" not in stopped.stdout


def test_a_bench_that_is_stopped_has_kept_its_rows(bench: Callable[..., Result]) -> None:
    stopped = bench([fake("one"), replace(fake("two"), measure=is_stopped), fake("three")])
    assert stopped.exit_code == 130
    assert stopped.stdout.splitlines()[-1].startswith("one ")
    assert list(read_table().index) == ["one"]
    assert "stopped: 1 row kept in results/bench.csv" in stopped.stderr


def test_rows_measured_again_replace_those_of_their_name(bench: Callable[..., Result]) -> None:
    bench([fake("one"), fake("two")], "--repeats", "1")
    again = replace(fake("one"), measure=lambda _: Samples([7.0]))
    bench([again, fake("three")], "--repeats", "1")
    table = read_table()
    assert sorted(table.index) == ["one", "three", "two"]
    assert table.loc["one", "ours"] == 7.0
    assert table.loc["two", "ours"] == 1.0


def test_rows_without_unit_bar_or_rival_are_kept(bench: Callable[..., Result]) -> None:
    lone = replace(fake("one", bar=None), unit="", measure=lambda _: Samples([0.5]))
    assert bench([lone, replace(lone, name="two")]).exit_code == 0
    assert bench([lone, replace(lone, name="three")]).exit_code == 0
    table = read_table()
    assert list(table.index) == ["one", "two", "three"]
    assert list(table["ours"]) == [0.5, 0.5, 0.5]
    assert table[["unit", "rival", "bar", "held"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("arguments", "measured"),
    [
        ([], ["exchange-ray", "exchange-flower", "memory"]),
        (["memory"], ["memory"]),
        (["exchange-*"], ["exchange-ray", "exchange-flower"]),
        (["memory", "*-ray", "memory"], ["exchange-ray", "memory"]),
    ],
)
def test_rows_are_chosen_by_name(
    bench: Callable[..., Result], arguments: list[str], measured: list[str]
) -> None:
    bench([fake("exchange-ray"), fake("exchange-flower"), fake("memory")], *arguments)
    assert list(read_table().index) == measured


@pytest.mark.parametrize("name", ["exchange-rey", "exchange-ray-*"])
def test_an_unknown_name_is_refused_with_those_there_are(
    bench: Callable[..., Result], name: str
) -> None:
    refused = bench([fake("exchange-ray"), fake("memory")], "memory", name)
    assert refused.exit_code == 2
    assert f"unknown row '{name}'. Did you mean 'exchange-ray'?" in refused.stderr
    assert "Allowed: exchange-ray, memory" in refused.stderr
    assert not Path("results").exists()


def test_rows_without_their_data_are_left_out(bench: Callable[..., Result]) -> None:
    done = bench([fake("one", data=("mnist",)), fake("two")])
    assert done.exit_code == 0
    assert "one is left out: mnist not found (set PUDICA_DATA)" in done.stderr
    assert list(read_table().index) == ["two"]


def test_a_missed_bar_is_said_and_ends_in_1(bench: Callable[..., Result]) -> None:
    done = bench([fake("one", bar=0.9), fake("two")])
    assert done.exit_code == 1
    assert "bars missed: one" in done.stderr
    assert list(read_table()["held"]) == ["NO", "yes"]


def test_a_row_that_fails_does_not_stop_the_others(bench: Callable[..., Result]) -> None:
    done = bench([replace(fake("one"), measure=fails), fake("two")])
    assert done.exit_code == 1
    assert "error: one: RuntimeError: no such engine" in done.stderr
    assert "failed: one" in done.stderr
    assert list(read_table().index) == ["two"]


def test_quick_says_what_it_is_and_keeps_its_rows_apart(bench: Callable[..., Result]) -> None:
    done = bench([fake("one", quick=True), fake("two")], "--quick")
    assert "quick: 1 short rows, without 1 that take longer" in done.stderr
    table = read_table("results/bench-quick.csv")
    assert list(table.index) == ["one"]
    assert table.loc["one", "runs"] == 2
    assert not Path("results/bench.csv").exists()


def test_quick_begins_no_row_when_its_time_is_over(
    bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pudica.simulations.benchmarks.__main__.QUICK_SECONDS", -1.0)
    done = bench([fake("one", quick=True)], "--quick")
    assert "one is left out" in done.stderr
    assert not Path("results/bench-quick.csv").exists()


def test_quick_refuses_a_row_that_takes_longer(bench: Callable[..., Result]) -> None:
    refused = bench([fake("one"), fake("two", quick=True)], "one", "--quick")
    assert refused.exit_code == 2
    assert "--quick" in refused.stderr


@pytest.mark.parametrize(
    "content", ["", "some,other\n1,2\n", "name,telephone\nMia,12\n", "\x89PNG"]
)
def test_a_file_that_is_no_table_is_not_overwritten(
    bench: Callable[..., Result], content: str
) -> None:
    Path("mine").write_text(content)
    refused = bench([fake("one")], "--out", "mine")
    assert refused.exit_code == 2
    assert "mine is not a table of benchmarks" in refused.stderr
    assert Path("mine").read_text() == content


def test_ray_is_connected_once_and_only_for_rows_that_need_it(
    bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[str] = []

    @contextmanager
    def connect(_: object) -> Iterator[None]:
        connected.append("on")
        yield
        connected.append("off")

    def notes(name: str, ray: bool) -> Benchmark:
        def measure(_: int) -> Samples:
            connected.append(name)
            return Samples([1.0])

        return replace(fake(name, ray=ray), measure=measure)

    monkeypatch.setattr(run, "connect", connect)
    monkeypatch.setattr(run.ray, "is_initialized", lambda: "on" in connected)
    bench([notes("one", False), notes("two", True), notes("three", True)])
    assert connected == ["one", "on", "two", "three", "off"]


def test_list_shows_names_needs_and_what_is_measured(bench: Callable[..., Result]) -> None:
    done = bench([fake("one", data=("mnist",), ray=True), fake("two", quick=True)], "--list")
    assert done.stdout.split("\n") == [
        "one                         mnist, Ray",
        "    what one is",
        "two                         --quick",
        "    what two is",
        "",
    ]
    assert not Path("results").exists()


def test_names_are_unique_and_well_formed() -> None:
    names = [benchmark.name for benchmark in REAL]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(r"[a-z]+(-[a-z0-9]+)+", name)] == []


def test_rows_need_data_sets_of_the_catalogue() -> None:
    known = {entry.name for entry in catalogue()}
    assert [b.name for b in REAL if not set(b.data) <= known] == []


def test_each_module_has_rows_and_some_are_quick() -> None:
    modules = {benchmark.name.split("-")[0] for benchmark in REAL}
    assert modules == {
        *("exchange", "apps", "generator", "split", "memory", "disguises"),
        *("federated", "facemix", "study"),
    }
    assert 0 < sum(benchmark.quick for benchmark in REAL) < len(REAL)
    assert select_benchmarks([]) == REAL


@pytest.mark.parametrize("value", [0.0, 0.0098765, 0.12345, 9.87654, 98.7654, 98765.4])
def test_lines_fit_80_columns_below_their_headings(value: float) -> None:
    for benchmark in REAL:
        samples = Samples([value], [1.0])
        row = make_row(benchmark.name, benchmark.what, benchmark.unit, benchmark.bar, samples)
        line = format_row(row)
        assert len(line) <= 80
        if benchmark.bar is not None:
            assert line.rindex(row.held) == HEADER.index("held")
        assert all(len(each) <= 80 for each in format_benchmark(benchmark).splitlines())
