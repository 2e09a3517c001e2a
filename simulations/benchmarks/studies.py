"""Many runs as one: a study against the same runs one after the other."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pudica.simulations.benchmarks.engines import run_module
from pudica.simulations.benchmarks.measure import Benchmark, Samples, measure_seconds

SEEDS = 20
# Each repetition takes minutes.
MOST_REPEATS = 2


def run_study(folder: Path) -> None:
    """Run the demo with all seeds as a study."""
    from pudica.simulations import study

    done = study("themis-digits", seeds=range(SEEDS), out=folder)
    if not (done.status()["status"] == "done").all():
        raise RuntimeError("a run of the study failed")


def run_sequence(folder: Path, engine: str) -> None:
    """Run the demo with all seeds one after the other, in one process."""
    from pudica.simulations import run

    for seed in range(SEEDS):
        run("themis-digits", set={"seed": seed}, engine=engine, out=folder)


def _compare(engine: str, repeats: int) -> Samples:
    ours, rival = [], []
    for _ in range(min(repeats, MOST_REPEATS)):
        ours.append(run_module(__name__, "study"))
        rival.append(run_module(__name__, engine))
    return Samples(ours, rival)


BENCHMARKS = [
    Benchmark(
        f"study-{engine}",
        f"{SEEDS} runs of themis-digits as a study / one after the other, engine {engine}",
        "s",
        0.6,
        partial(_compare, engine),
    )
    for engine in ("inprocess", "ray")
]


WAYS: dict[str, Callable[[Path], None]] = {
    "study": run_study,
    "inprocess": partial(run_sequence, engine="inprocess"),
    "ray": partial(run_sequence, engine="ray"),
}


def main() -> None:
    """Time one way to run them, imports excluded, and print the seconds as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure_seconds(lambda: WAYS[sys.argv[1]](Path(folder)))))


if __name__ == "__main__":
    main()
