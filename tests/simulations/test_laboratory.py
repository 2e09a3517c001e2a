"""Experiments from Python do what the command does."""

from __future__ import annotations

from pathlib import Path

import pytest

from pudica import analysis
from pudica.models.errors import RequestError
from pudica.simulations import Run, run

SETTINGS = {
    "seed": 3,
    "data.limit": 160,
    "participants": [{"model": "softmax"}, {"model": "mlp"}],
    "training": {"epochs": 1},
    "themis.epochs": 1,
    "themis.update": "averaged",
    "themis.release.draws": 1,
    "themis.examiner": None,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("results")
    return run("themis-digits", set=SETTINGS, engine="inprocess", out=out)


def test_a_run_has_its_measurements_tables_and_figures(done: Run) -> None:
    assert done.directory.parent.name.startswith("results")
    assert done.frame().equals(analysis.load(done.directory))
    assert analysis.describe(done.directory)["seed"] == 3
    tables = done.tables()
    assert tables.keys() == analysis.tables(done.directory).keys()
    assert "Runs" in tables
    assert all(figure.exists() for figure in done.plot())


def test_it_is_quiet_unless_it_is_asked_for_progress(
    done: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    quiet = run("themis-digits", set=SETTINGS, engine="inprocess")
    assert quiet.directory.parent == tmp_path / "results"
    assert capfd.readouterr() == ("", "")
    shown = run(quiet.directory / "experiment.yaml", engine="inprocess", progress=True)
    assert "1/1" in capfd.readouterr().err
    for other in (quiet, shown):
        assert other.frame().drop(columns="run").equals(done.frame().drop(columns="run"))


def test_a_run_that_is_done_is_returned_as_it_is(done: Run) -> None:
    before = (done.directory / "metrics.jsonl").stat().st_mtime_ns
    assert run(resume=done.directory) == done
    assert (done.directory / "metrics.jsonl").stat().st_mtime_ns == before


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unknown engine 'rya'"):
        run("themis-digits", engine="rya")
    with pytest.raises(RequestError, match="name an experiment"):
        run(engine="inprocess", out=tmp_path)
    with pytest.raises(RequestError, match="holds no run"):
        run(resume=tmp_path)
    with pytest.raises(RequestError, match="seed"):
        run("themis-digits", set={"seed": "three"}, out=tmp_path)
    assert list(tmp_path.iterdir()) == []
