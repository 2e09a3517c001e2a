"""Shared by all commands: refusing requests, explaining failed runs, printing results."""

from __future__ import annotations

import errno
import os
import re
import shlex
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pudica.simulations.deployment.checking import CheckResult

RunPaths = Annotated[list[Path], typer.Argument(help="Run directories.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
]
DataSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of --data, such as limit=500."),
]

FAILED, WRONG, INTERRUPTED = 1, 2, 130
ENGINE = "ray"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM)
DISK_ERROR = re.compile(r"(?:OSError|PermissionError)\)?: \[Errno (\d+)\]")


@contextmanager
def exit_on_request_error() -> Iterator[None]:
    """Print the message of a wrong request, and exit with code 2."""
    from pudica.models.errors import RequestError

    try:
        yield
    except RequestError as error:
        print_message(f"error: {error}")
        raise typer.Exit(WRONG) from None


def print_message(text: str, err: bool = True) -> None:
    """Print lines on standard error or output, with control characters escaped."""
    from pudica.models.printable import escape_hidden

    typer.echo(escape_hidden(text, keep="\n"), err=err)


def print_check_results(results: Sequence[CheckResult]) -> None:
    """Print results of checks; exit with code 2 if not all have passed."""
    for result in results:
        print_message(
            f"{'✓' if result.passed else '✗'} {result.name:17} {result.message}", err=False
        )
    if not all(result.passed for result in results):
        raise typer.Exit(WRONG)


@contextmanager
def explain_failures(
    directory: Path,
    command: str = "pudica run",
    options: str = "",
    what: str = "the run failed",
) -> Iterator[None]:
    """Explain why a run failed or was stopped, and how ``command`` resumes it."""
    from pudica.models.errors import RequestError

    resume = f"{command} --resume {shlex.quote(str(shorten_path(directory)))} {options}".rstrip()
    try:
        yield
    except RequestError:
        raise
    except KeyboardInterrupt:
        print_message(f"\nstopped; resume with: {resume}")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if "PUDICA_TRACEBACK" in os.environ:
            traceback.print_exc()
        if problem := _describe_disk_error(error):
            print_message(f"error: --out: can't write in {shorten_path(directory)}: {problem}")
            print_message(
                f"nothing that was saved is lost: free some space, then resume with: {resume}"
            )
            raise typer.Exit(WRONG) from None
        print_message(f"error: {what}: {type(error).__name__}: {error}")
        print_message(f"resume with: {resume}   (PUDICA_TRACEBACK=1 shows where it failed)")
        raise typer.Exit(FAILED) from None


@contextmanager
def explain_app_failure() -> Iterator[None]:
    """Explain why somebody's own app failed, or that it was stopped."""
    from pudica.models.errors import RequestError

    try:
        yield
    except RequestError:
        raise
    except KeyboardInterrupt:
        print_message("\nstopped")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if "PUDICA_TRACEBACK" in os.environ:
            traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        print_message(f"error: the app failed: {type(error).__name__}: {error}")
        print_message(
            f"in {last.filename}, line {last.lineno}, {last.name}   "
            "(PUDICA_TRACEBACK=1 shows the traceback)"
        )
        raise typer.Exit(FAILED) from None


def _describe_disk_error(error: Exception) -> str:
    """Describe a disk error, also if another process only sent it as text; otherwise return ""."""
    match = DISK_ERROR.search(f"{type(error).__name__}: {error}")
    return os.strerror(int(match[1])) if match and int(match[1]) in DISK_ERRORS else ""


def print_results(directory: Path, quiet: bool) -> None:
    """Print the tables and draw the plots of a finished run."""
    from pudica import analysis
    from pudica.simulations.display import print_result

    figures = analysis.plot(directory)
    if quiet:
        return
    for title, frame in analysis.brief(analysis.tables(directory)).items():
        print_result(frame, title)
    log = directory / "events.log"
    if dropouts := log.read_text().count(" dropout: ") if log.exists() else 0:
        print_message(f"{dropouts} dropouts: {shorten_path(log)} says whose and why")
    typer.echo("Plots")
    for figure in figures:
        typer.echo(f"  {shorten_path(figure)}")
    typer.echo("\nRun")


def print_study(directory: Path, failures: Mapping[str, str], quiet: bool) -> None:
    """Print what a study came to; exit with code 1 if some of its runs failed."""
    from pudica.simulations.display import print_result
    from pudica.simulations.studies.study import Study

    study, place = Study(directory), shorten_path(directory)
    if not quiet and len(failures) < len(study.cells):
        measured = study.compare().dropna(axis="columns", how="all")
        print_result(measured, "Comparison", rest="with `pudica table compare`")
        named = shlex.quote(str(place))
        typer.echo(f"More: pudica show {named}\n      pudica table compare {named}\n\nStudy")
    typer.echo(directory)
    for name, reason in failures.items():
        print_message(f"error: {name} failed: {reason}")
    if failures:
        print_message(f"resume with: pudica study --resume {shlex.quote(str(place))}")
        raise typer.Exit(FAILED)


def shorten_path(path: Path) -> Path:
    """Return the path relative to the working directory, if it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
