"""A competition's leaderboard as a static page: no scripts, no external resources."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pudica.analysis.drawing import plot_style, save
from pudica.analysis.runs import Run, open_run, select
from pudica.analysis.themis import (
    build_leaderboard,
    competition_settings,
    draw_images,
    themis_protection,
)
from pudica.models.errors import RequestError
from pudica.models.files import write_atomically
from pudica.models.printable import escape_hidden
from pudica.strategies.core.spreadsheets import write_csv
from pudica.strategies.themis.orders import read_stages

HEADINGS = {
    "rank": "rank",
    "model": "participant",
    "trained_accuracy": "accuracy under noise (%)",
    "trained_std": "± over draws",
    "plain_rank": "rank on plain images",
    "trained_delta_rank": "change of rank",
    "dropouts": "dropouts",
}
PROTECTION = {
    "mean_sigma_pixels": "mean σ of the noise, in [0, 1] pixels",
    "psnr": "PSNR of the noisy images (dB)",
    "ssim": "SSIM of the noisy images",
    "examiner_accuracy_as_released": "what an examiner gets right of them (%)",
    "examiner_accuracy": "what an examiner gets right after denoising (%)",
}
STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #8884; }
th:nth-child(2), td:nth-child(2), .facts th, .facts td:first-child { text-align: left; }
img { max-width: 100%; background: white; }
footer { margin-top: 3rem; opacity: .7; font-size: .85rem; }
"""


def publish(run: Path, folder: Path) -> list[Path]:
    """Write a competition's page: ``index.html``, ``leaderboard.csv`` and pictures.

    Before there is a leaderboard, the page lists the stages and the participants.

    Parameters
    ----------
    folder : Path
        Created if missing. Files that another run published there are replaced.

    Returns
    -------
    list of Path
        The files written. Pictures show images as released; a run that compared them with plain
        test images has no pictures, since those must stay private.

    Raises
    ------
    RequestError
        If the run is not a competition, or none of its stages is over.
    """
    opened = open_run(run)
    if opened.info.get("system") != "themis":
        raise RequestError(f"{run}: a page is for competitions (system themis)")
    stages = read_stages(opened.directory)
    if opened.info.get("status") != "done" and not any("closed" in s for s in stages.values()):
        raise RequestError(f"{run}: no stage of it is over yet, so there is nothing to publish")
    folder.mkdir(parents=True, exist_ok=True)
    written, parts = [], []
    for case, settings in competition_settings(opened).each_case().items():
        ranked = build_leaderboard(opened, case, settings.release_bounds[0])
        if ranked is not None:
            if settings.release.draws == 1:
                ranked = ranked.drop(columns="trained_std")
            files, part = _publish_case(opened, case, ranked, folder)
            written += files
            parts.append(part)
    reported = select(opened.frame, stage="local", metric="validation_accuracy")
    shares = zip(reported["node"], reported["value"], strict=True)
    facts = _render_facts({name: f"{100 * value:.2f} %" for name, value in shares})
    parts.append(f"<h3>Accuracy on public images, as participants say</h3>{facts}")
    if stages:
        spans = {
            name: " to ".join(filter(None, [stage.get("opened"), stage.get("closed", "…")]))
            for name, stage in stages.items()
        }
        parts.append(f"<h3>Stages</h3>{_render_facts(spans)}")
    page = folder / "index.html"
    write_atomically(page, _render_page(opened, parts).encode())
    return [page, *written]


def _publish_case(
    run: Run, case: str, ranked: pd.DataFrame, folder: Path
) -> tuple[list[Path], str]:
    """Write a case's leaderboard and picture; return the files, and its part of the page."""
    dropouts = select(run.frame, metric="dropouts", case=case)
    ranked["dropouts"] = [
        int(select(dropouts, node=name)["value"].sum()) for name in ranked["model"]
    ]
    suffix = "" if case == "main" else f"-{case}"
    written = [folder / f"leaderboard{suffix}.csv"]
    write_csv(ranked, written[0])
    heading = "" if case == "main" else f"<h2>{_escape(case)}</h2>"
    quality = select(themis_protection([run]), case=case, release="trained")
    facts = {} if quality.empty else quality.iloc[0].to_dict()
    parts = [
        heading,
        _render_leaderboard(ranked),
        f'<p><a href="{_escape(written[0].name)}">as a table (CSV)</a></p>',
        "<h3>What the noise hides</h3>",
        _render_facts(
            {PROTECTION[key]: facts[key] for key in PROTECTION if pd.notna(facts.get(key))}
        ),
    ]
    if not competition_settings(run).release.compare:
        with plot_style():
            if figure := draw_images(run, case):
                written.append(save(figure, folder / f"images{suffix}.png"))
                source = f'src="{_escape(written[1].name)}" alt="noisy test images"'
                parts.append(f"<h3>What participants saw</h3><img {source}>")
    if absent := [str(name) for name in run.info["nodes"] if name not in set(ranked["model"])]:
        names = _escape(", ".join(absent))
        parts.append(f"<p>Not ranked, since they left or never came: {names}.</p>")
    return written, "\n".join(parts)


def _escape(text: str) -> str:
    """Escape markup and hidden characters."""
    return html.escape(escape_hidden(text))


def _render_leaderboard(ranked: pd.DataFrame) -> str:
    columns = [key for key in HEADINGS if key in ranked and ranked[key].notna().any()]
    head = "".join(f"<th>{_escape(HEADINGS[key])}</th>" for key in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_render_cell(row[key])}</td>" for key in columns) + "</tr>\n"
        for _, row in ranked.iterrows()
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>"


def _render_facts(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{_escape(key)}</td><td>{_render_cell(value)}</td></tr>\n"
        for key, value in values.items()
    )
    return f'<table class="facts">{rows}</table>'


def _render_cell(value: Any) -> str:
    """Format a value; names come from participants and must be escaped."""
    if isinstance(value, str):
        return _escape(value)
    return f"{value:.2f}" if isinstance(value, float) and not value.is_integer() else f"{value:g}"


def _render_page(run: Run, parts: list[str]) -> str:
    title = _escape(str(run.info["experiment"]))
    description = _escape(str(run.settings.get("description", "")).replace("\n", " "))
    ended = run.info.get("ended")
    status = f"Ended {_escape(str(ended))}." if ended else "Not over yet."
    release = "They are not given the images without it."
    if remarks := run.info.get("remarks"):
        release = f"This is {_escape('; '.join(remarks))}."
    elif competition_settings(run).release.compare:
        release = "A rehearsal: they are given the plain images too, to compare with."
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src 'self'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>{description}</p>
{"".join(parts)}
<footer>{status} Participants predict classes of test images under noise that is trained together
with their models (THEMIS). {release}</footer>
</body>
</html>
"""
