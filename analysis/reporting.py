"""Runs as one page that a browser shows by itself: no network, no further files."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pudica.analysis.reproducing import FILE
from pudica.analysis.runs import Run, RunPaths, open_runs
from pudica.analysis.sections import Picture, Section, build_sections, group_by
from pudica.clients.protocol import code_fingerprint
from pudica.models.errors import RequestError
from pudica.models.files import write_atomically
from pudica.models.printable import escape_hidden

GENERATOR = "pudica report"
"""Marks a file as a report, which another report may replace."""
HEAD_BYTES = 1000


def report(runs: RunPaths, path: str | Path = "report.html") -> Path:
    """Write a page on one or several runs, which may be in progress.

    It has all tables, which sort; the figures; what is promised for a record, in words; commands
    that run it again; versions and hardware. It is one file that loads nothing. It is for whoever
    ran it: seeds, settings and plain images are in it.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        As of :func:`pudica.analysis.load`.
    path : str or Path
        Its folder is made if missing; an earlier report is replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    RequestError
        As :func:`pudica.analysis.load`; or if something else is at the path, or it can't be
        written.
    """
    path = Path(path)
    _validate_path(path)
    page = render_page(open_runs(runs))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode())
    except OSError as error:
        raise RequestError(f"can't write {path}: {error.strerror}") from error
    return path


def _validate_path(path: Path) -> None:
    """Refuse to replace anything but a report."""
    if path.is_dir():
        raise RequestError(f"{path} is a folder; name a file in it, such as {path / 'report.html'}")
    if path.exists():
        with path.open("rb") as file:
            if GENERATOR.encode() not in file.read(HEAD_BYTES):
                raise RequestError(f"{path} is no report, so it is not replaced; name another file")


def render_page(runs: Sequence[Run]) -> str:
    """Return the page on some runs, as HTML."""
    templates = _open_templates()
    sections = build_sections(runs)
    script = _read_part(templates, "report.js")
    return templates.get_template("report.html").render(
        title=_build_title(runs),
        lead=_build_lead(runs),
        unfinished=[_describe_status(run) for run in runs if run.info.get("status") != "done"],
        private=_find_private(sections),
        sections=sections,
        environments=[
            ([run.name for run in own], _describe_environment(own[0]))
            for own in group_by(runs, _describe_environment)
        ],
        file=FILE,
        generator=GENERATOR,
        version=version("pudica"),
        code=code_fingerprint(),
        script=script,
        script_hash=_hash(script),
        style=_read_part(templates, "report.css"),
    )


def _open_templates() -> Environment:
    return Environment(
        loader=PackageLoader("pudica.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_escape_hidden,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _escape_hidden(value: Any) -> Any:
    """Escape hidden characters in what is put into the page; afterwards markup is escaped."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return escape_hidden(value, keep="\n") if is_text else value


def _read_part(templates: Environment, name: str) -> Markup:
    assert templates.loader is not None
    return Markup(templates.loader.get_source(templates, name)[0])


def _hash(script: str) -> str:
    """Return a script's hash, by which the page's policy allows this script alone."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _build_title(runs: Sequence[Run]) -> str:
    names = dict.fromkeys(str(run.info.get("experiment", "")) for run in runs)
    return next(iter(names)) if len(names) == 1 else f"{len(names)} experiments"


def _build_lead(runs: Sequence[Run]) -> str:
    """Return how many runs there are of what."""
    own = group_by(runs, lambda run: str(run.info.get("experiment", "")))
    counts = ", ".join(f"{len(each)} of {each[0].info.get('experiment', '')}" for each in own)
    if len(runs) == 1:
        return "One run."
    return f"{len(runs)} runs." if len(own) == 1 else f"{len(runs)} runs: {counts}."


def _describe_status(run: Run) -> str:
    status, reason = (str(run.info.get(key, "")) for key in ("status", "reason"))
    return ": ".join(filter(None, [run.name, status, reason]))


def _find_private(sections: Sequence[Section]) -> dict[str, list[Picture]]:
    """Return the figures that must not be published, by what they show."""
    pictures = [
        picture for section in sections for own in section.pictures.values() for picture in own
    ]
    private = group_by((p for p in pictures if p.private), lambda picture: picture.private)
    return {own[0].private: own for own in private}


def _describe_environment(run: Run) -> tuple[tuple[str, str], ...]:
    """Return what a run was computed with, by name."""
    hardware = run.info.get("hardware", {})
    facts = {
        "CPU": hardware.get("cpu"),
        "instruction set": hardware.get("instructions"),
        "machine": hardware.get("machine"),
        "logical CPUs": hardware.get("cpus"),
        "memory (GiB)": hardware.get("memory_gib"),
        "GPUs": ", ".join(map(str, hardware.get("gpus", []))),
        "engine": run.info.get("engine"),
        "pudica's code": run.info.get("code"),
        "python": hardware.get("python"),
        **run.info.get("versions", {}),
    }
    return tuple((name, str(fact)) for name, fact in facts.items() if fact)
