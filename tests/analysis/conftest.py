from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from written_runs import competition_rows, write_run


@pytest.fixture
def small_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run of two participants and one case."""

    def write(name: str = "run", seed: int = 0, **themis: Any) -> Path:
        plain, untrained, trained = (
            {"LeNet": a, "ResNet-56": b} for a, b in ((0.7, 0.8), (0.5, 0.4), (0.6, 0.75))
        )
        rows = competition_rows(plain, untrained, {"main": trained})
        return write_run(tmp_path / name, rows, list(plain), seed=seed, **themis)

    return write
