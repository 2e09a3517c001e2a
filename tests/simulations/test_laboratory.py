"""Experiments from Python do what the command does."""

from __future__ import annotations

from pathlib import Path

import pytest

from pudica import analysis
from pudica.models.errors import RequestError
from pudica.simulations import Run, run, runner

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
    files = done.plot()
    assert all(file.exists() for file in files)
    assert list(done.figures()) == [file.stem for file in files]


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


def test_a_notebook_shows_what_a_run_is_and_its_tables(done: Run) -> None:
    shown = done._repr_html_()
    assert "<b>themis-digits</b> done, seed 3" in shown
    for title, frame in done.tables().items():
        assert f"<summary>{title}</summary>" in shown
        assert all(f"<th>{name}</th>" in shown for name in analysis.join_intervals(frame))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_says_how_to_resume(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error("half-way")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "execute", fail)
    with pytest.raises(error) as raised:
        run("themis-digits", engine="inprocess")
    (folder,) = tmp_path.glob("results/*")
    hint = f"resume with: run(resume='results/{folder.name}', engine='inprocess')"
    assert hint in "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])


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
