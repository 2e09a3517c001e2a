"""``pudica privacy`` as a user meets it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from written_ledgers import CLIPPED, NORMALISED, entry, in_the_clear, labels, write_ledger

Command = Callable[..., Result]

PAPER = (
    entry(case="paper", shield=NORMALISED, shape=[1280], trained_front=True, randomness="seeded"),
    in_the_clear("front gradients", case="paper", trained_front=True),
)


def test_privacy_shows_releases_claims_and_what_holds(pudica: Command, tmp_path: Path) -> None:
    run = write_ledger(tmp_path / "run", [entry(count=1), labels(), *PAPER])
    result = pudica("privacy", run, COLUMNS="200")
    assert result.exit_code == 0
    table, *cases = result.stdout.split("\nmain\n")
    assert "Releases of run, all of a record at δ = 1e-05" in table
    assert "3 (δ = 1e-05)" in table
    assert "  labels: declared public" in table
    main, paper = cases[0].split("\npaper\n")
    assert "  claimed: ε = 3 (δ = 1e-05) for one record (smashed data, one release)" in main
    assert "  holds for a training record: ε = 3 (δ = 1e-05)\n" in main
    assert "    labels are public\n" in main
    assert "  claimed: ε = 5 for one element (smashed data, one release)" in paper
    assert "  holds for a training record: no finite ε\n" in paper
    assert "    front gradients are released in the clear\n" in paper
    assert "    the front was trained on the private data" in paper


def test_several_runs_follow_each_other(pudica: Command, tmp_path: Path) -> None:
    runs = [
        write_ledger(tmp_path / name, [entry(count=1, shield={**CLIPPED, "epsilon": epsilon})])
        for name, epsilon in (("one", 2.0), ("two", 4.0))
    ]
    result = pudica("privacy", *runs)
    assert result.exit_code == 0
    one, two = result.stdout.split("Releases of two")
    assert "holds for a training record: ε = 2 " in one
    assert "holds for a training record: ε = 4 " in two


def test_delta_can_be_chosen(pudica: Command, tmp_path: Path) -> None:
    run = write_ledger(tmp_path / "run", [entry()])
    assert "(δ = 0.001)" in pudica("privacy", run, "--delta", "0.001").stdout
    wrong = pudica("privacy", run, "--delta", "2")
    assert wrong.exit_code == 2
    assert "delta: must be between 0 and 1, got 2" in wrong.stderr


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ("themis", "a THEMIS competition promises no differential privacy, and keeps no ledger"),
        ("split", "keeps no ledger of what was released, it lacks releases.json"),
    ],
)
def test_runs_without_a_ledger(pudica: Command, tmp_path: Path, system: str, message: str) -> None:
    good = write_ledger(tmp_path / "good", [entry()])
    bare = write_ledger(tmp_path / "bare", None, system)
    result = pudica("privacy", good, bare)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("shield", ["clip-laplace", "batch-norm-laplace", "norm-gaussian"])
def test_there_is_nothing_to_audit_without_noise(pudica: Command, shield: str) -> None:
    result = pudica("audit", shield, "--set", "epsilon=null")
    assert result.exit_code == 2
    assert (
        f"shield '{shield}' has no noise with a guarantee, there is nothing to audit"
        in result.stderr
    )
