"""``make bench``: measure rows of the benchmark table, print them, and keep them as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pudica.simulations.console import (
    FAILED,
    INTERRUPTED,
    exit_on_request_error,
    print_message,
)

if TYPE_CHECKING:
    from pudica.simulations.benchmarks.measure import Benchmark

REPEATS, QUICK_REPEATS = 5, 2
# No row of --quick is begun later than this, so that it ends within three minutes.
QUICK_SECONDS = 140.0
OUT, QUICK_OUT = Path("results/bench.csv"), Path("results/bench-quick.csv")


def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Rows, or patterns such as 'exchange-*'; all rows if there is none."),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Repetitions of each; medians are shown.",
            show_default=f"{REPEATS}, {QUICK_REPEATS} with --quick",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The CSV in which rows are kept, beside those of other names.",
            show_default=f"{OUT}, {QUICK_OUT.name} with --quick",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the short rows, in three minutes.")
    ] = False,
    show_list: Annotated[
        bool, typer.Option("--list", help="Show the rows and what they need; measure none.")
    ] = False,
) -> None:
    """Measure rows on an idle machine; ratios carry over to others, seconds do not."""
    with exit_on_request_error():
        chosen = _choose(names or [], quick)
        if show_list:
            _print_list(chosen)
            return
        _measure(chosen, repeats, out, quick)


def _choose(names: list[str], quick: bool) -> list[Benchmark]:
    from pudica.models.errors import RequestError
    from pudica.simulations.benchmarks.selection import select_benchmarks

    named = select_benchmarks(names)
    chosen = [benchmark for benchmark in named if benchmark.quick or not quick]
    if not chosen:
        raise RequestError(f"--quick: {', '.join(names)} takes longer; measure it without --quick")
    if quick:
        longer = len(named) - len(chosen)
        print_message(f"quick: {len(chosen)} short rows, without {longer} that take longer")
    return chosen


def _print_list(benchmarks: list[Benchmark]) -> None:
    from pudica.simulations.benchmarks.table import format_benchmark

    for benchmark in benchmarks:
        typer.echo(format_benchmark(benchmark))


def _measure(
    benchmarks: list[Benchmark], repeats: int | None, out: Path | None, quick: bool
) -> None:
    """Measure rows; exit with 1 if one fails or misses its bar, and with 130 if interrupted."""
    from pudica.simulations.benchmarks.run import BenchmarkRun

    run = BenchmarkRun(
        repeats or (QUICK_REPEATS if quick else REPEATS),
        out or (QUICK_OUT if quick else OUT),
        QUICK_SECONDS if quick else float("inf"),
    )
    try:
        run.measure(benchmarks)
    except KeyboardInterrupt:
        print_message(f"\nstopped: {run.summarize()}")
        raise typer.Exit(INTERRUPTED) from None
    print_message(run.summarize())
    if run.missed or run.failed:
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
