"""A competition's leaderboard as a static page: no scripts, no external resources."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pudica.analysis.drawing import plot_style, save
from pudica.analysis.runs import Run, open_run
from pudica.analysis.themis import build_leaderboard, competition_settings, themis_protection
from pudica.analysis.themis_figures import draw_images
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
    run : Path
        Run directory of a competition.
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
    quality = themis_protection([opened])
    written, parts = [], []
    for case, settings in competition_settings(opened).each_case().items():
        ranked = build_leaderboard(opened, case, settings.release_bounds[0])
        if ranked is None:
            continue
        if settings.release.draws == 1:
            ranked = ranked.drop(columns="trained_std")
        ranked["dropouts"] = [_count_dropouts(opened, case, name) for name in ranked["model"]]
        suffix = "" if case == "main" else f"-{case}"
        table = folder / f"leaderboard{suffix}.csv"
        write_csv(ranked, table)
        written.append(table)
        picture = _draw_picture(opened, case, folder / f"images{suffix}.png")
        written += [picture] if picture else []
        own = quality[(quality["case"] == case) & (quality["release"] == "trained")]
        parts.append(_render_case(case, ranked, own, table, picture))
        parts.append(_render_absent(opened, set(ranked["model"])))
    parts.append(_render_participants(opened))
    if stages:
        parts.append(_render_stages(stages))
    page = folder / "index.html"
    write_atomically(page, _render_page(opened, parts).encode())
    return [page, *written]


def _escape(text: str) -> str:
    """Escape markup and hidden characters."""
    return html.escape(escape_hidden(text))


def _render_participants(run: Run) -> str:
    """Render the participants and the accuracies they report on public images."""
    rows = run.frame
    own = rows[(rows["stage"] == "local") & (rows["metric"] == "validation_accuracy")]
    values = {str(row["node"]): f"{100 * row['value']:.2f} %" for _, row in own.iterrows()}
    return f"<h3>Accuracy on public images, as participants say</h3>{_render_facts(values)}"


def _render_absent(run: Run, ranked: set[str]) -> str:
    """Render the nodes of the experiment that are not ranked."""
    names = [str(name) for name in run.info["nodes"] if name not in ranked]
    if not names:
        return ""
    return f"<p>Not ranked, since they left or never came: {_escape(', '.join(names))}.</p>"


def _render_stages(stages: Mapping[str, Mapping[str, str]]) -> str:
    values = {
        name: " to ".join(filter(None, [stage.get("opened"), stage.get("closed", "…")]))
        for name, stage in stages.items()
    }
    return f"<h3>Stages</h3>{_render_facts(values)}"


def _count_dropouts(run: Run, case: str, name: str) -> int:
    rows = run.frame
    own = rows[(rows["metric"] == "dropouts") & (rows["node"] == name) & (rows["case"] == case)]
    return int(own["value"].sum())


def _draw_picture(run: Run, case: str, path: Path) -> Path | None:
    if competition_settings(run).release.compare:
        return None
    with plot_style():
        figure = draw_images(run, case)
        return save(figure, path) if figure else None


def _render_case(
    case: str, ranked: pd.DataFrame, quality: pd.DataFrame, table: Path, picture: Path | None
) -> str:
    heading = "" if case == "main" else f"<h2>{_escape(case)}</h2>"
    facts = {} if quality.empty else quality.iloc[0].to_dict()
    shown = (
        f'<h3>What participants saw</h3><img src="{_escape(picture.name)}" alt="noisy test images">'
        if picture
        else ""
    )
    return f"""{heading}
{_render_leaderboard(ranked)}
<p><a href="{_escape(table.name)}">as a table (CSV)</a></p>
<h3>What the noise hides</h3>
{_render_facts({PROTECTION[key]: facts[key] for key in PROTECTION if pd.notna(facts.get(key))})}
{shown}"""


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


def _describe_release(run: Run) -> str:
    if remarks := run.info.get("remarks"):
        return f"This is {_escape('; '.join(remarks))}."
    if competition_settings(run).release.compare:
        return "A rehearsal: they are given the plain images too, to compare with."
    return "They are not given the images without it."


def _render_page(run: Run, parts: list[str]) -> str:
    title = _escape(str(run.info["experiment"]))
    description = _escape(str(run.settings.get("description", "")).replace("\n", " "))
    ended = run.info.get("ended")
    stand = f"Ended {_escape(str(ended))}." if ended else "Not over yet."
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
<footer>{stand} Participants predict classes of test images under noise that is trained together
with their models (THEMIS). {_describe_release(run)}</footer>
</body>
</html>
"""
