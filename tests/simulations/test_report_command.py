"""``pudica report`` as a user meets it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from click.testing import Result
from written_ledgers import entry, write_ledger

Command = Callable[..., Result]


def test_report_writes_one_page(pudica: Command, tmp_path: Path) -> None:
    runs = [write_ledger(tmp_path / name, [entry(count=1)]) for name in ("one", "two")]
    assert pudica("report", *runs).stdout == "report.html\n"
    assert "2 runs" in (tmp_path / "report.html").read_text()
    assert pudica("report", runs[0], "-o", "pages/one.html").stdout == "pages/one.html\n"


def test_report_replaces_nothing_of_yours(pudica: Command, tmp_path: Path) -> None:
    run = write_ledger(tmp_path / "run", [entry()])
    (tmp_path / "notes.html").write_text("mine")
    result = pudica("report", run, "-o", "notes.html")
    assert result.exit_code == 2
    assert "error: notes.html is no report, so it is not replaced" in result.stderr
    assert (tmp_path / "notes.html").read_text() == "mine"
    assert pudica("report", tmp_path / "nothing").exit_code == 2
