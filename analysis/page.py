"""A competition's leaderboard as a page for everybody: no scripts, nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pudica.analysis.drawing import own_look, save
from pudica.analysis.runs import Run, open_run
from pudica.analysis.themis import board, competition, themis_protection
from pudica.analysis.themis_figures import draw_images
from pudica.models.errors import RequestError
from pudica.models.files import write_atomically
from pudica.models.printable import escape_hidden
from pudica.strategies.core.spreadsheets import write_csv
from pudica.strategies.themis.orders import states

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
    """Write a competition's page as it stands: ``index.html``, ``leaderboard.csv``, pictures.

    Before there is a leaderboard, the page has the stages and who takes part.

    Parameters
    ----------
    run : Path
        Of a competition.
    folder : Path
        Made if it is not there. What another run published there is replaced.

    Returns
    -------
    list of Path
        What was written. Pictures show images as they were released; where a run compared them
        with plain ones there are none, since those are the test set's.

    Raises
    ------
    RequestError
        It is no competition, or no stage of it is over.
    """
    opened = open_run(run)
    if opened.info.get("system") != "themis":
        raise RequestError(f"{run}: a page is for competitions (system themis)")
    stages = states(opened.directory)
    if opened.info.get("status") != "done" and not any("closed" in s for s in stages.values()):
        raise RequestError(f"{run}: no stage of it is over yet, so there is nothing to publish")
    folder.mkdir(parents=True, exist_ok=True)
    quality = themis_protection([opened])
    written, parts = [], []
    for case, settings in competition(opened).each_case().items():
        found = board(opened, case, settings.release_bounds[0])
        if found is None:
            continue
        if settings.release.draws == 1:
            found = found.drop(columns="trained_std")
        found["dropouts"] = [_dropouts(opened, case, name) for name in found["model"]]
        suffix = "" if case == "main" else f"-{case}"
        table = folder / f"leaderboard{suffix}.csv"
        write_csv(found, table)
        written.append(table)
        picture = _picture(opened, case, folder / f"images{suffix}.png")
        written += [picture] if picture else []
        own = quality[(quality["case"] == case) & (quality["release"] == "trained")]
        parts.append(_part(case, found, own, table, picture))
        parts.append(_absent(opened, set(found["model"])))
    parts.append(_participants(opened))
    if stages:
        parts.append(_stages(stages))
    page = folder / "index.html"
    write_atomically(page, _page(opened, parts).encode())
    return [page, *written]


def _escape(text: str) -> str:
    """Return a text that is neither markup nor hides anything."""
    return html.escape(escape_hidden(text))


def _participants(run: Run) -> str:
    """Return who takes part, and how good their models are on public images, as they say."""
    rows = run.frame
    own = rows[(rows["stage"] == "local") & (rows["metric"] == "validation_accuracy")]
    values = {str(row["node"]): f"{100 * row['value']:.2f} %" for _, row in own.iterrows()}
    return f"<h3>Accuracy on public images, as participants say</h3>{_facts(values)}"


def _absent(run: Run, ranked: set[str]) -> str:
    """Return who was to take part and is not ranked."""
    names = [str(name) for name in run.info["nodes"] if name not in ranked]
    if not names:
        return ""
    return f"<p>Not ranked, since they left or never came: {_escape(', '.join(names))}.</p>"


def _stages(stages: Mapping[str, Mapping[str, str]]) -> str:
    values = {
        name: " to ".join(filter(None, [stage.get("opened"), stage.get("closed", "…")]))
        for name, stage in stages.items()
    }
    return f"<h3>Stages</h3>{_facts(values)}"


def _dropouts(run: Run, case: str, name: str) -> int:
    rows = run.frame
    own = rows[(rows["metric"] == "dropouts") & (rows["node"] == name) & (rows["case"] == case)]
    return int(own["value"].sum())


def _picture(run: Run, case: str, path: Path) -> Path | None:
    if competition(run).release.compare:
        return None
    with own_look():
        figure = draw_images(run, case)
        return save(figure, path) if figure else None


def _part(
    case: str, found: pd.DataFrame, quality: pd.DataFrame, table: Path, picture: Path | None
) -> str:
    heading = "" if case == "main" else f"<h2>{_escape(case)}</h2>"
    facts = {} if quality.empty else quality.iloc[0].to_dict()
    shown = (
        f'<h3>What participants saw</h3><img src="{_escape(picture.name)}" alt="noisy test images">'
        if picture
        else ""
    )
    return f"""{heading}
{_leaderboard(found)}
<p><a href="{_escape(table.name)}">as a table (CSV)</a></p>
<h3>What the noise hides</h3>
{_facts({PROTECTION[key]: facts[key] for key in PROTECTION if pd.notna(facts.get(key))})}
{shown}"""


def _leaderboard(found: pd.DataFrame) -> str:
    columns = [key for key in HEADINGS if key in found and found[key].notna().any()]
    head = "".join(f"<th>{_escape(HEADINGS[key])}</th>" for key in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_cell(row[key])}</td>" for key in columns) + "</tr>\n"
        for _, row in found.iterrows()
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>"


def _facts(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{_escape(key)}</td><td>{_cell(value)}</td></tr>\n"
        for key, value in values.items()
    )
    return f'<table class="facts">{rows}</table>'


def _cell(value: Any) -> str:
    """Return a value for people; names come from participants, and are not to be markup."""
    if isinstance(value, str):
        return _escape(value)
    return f"{value:.2f}" if isinstance(value, float) and not value.is_integer() else f"{value:g}"


def _shown_plain(run: Run) -> str:
    if remarks := run.info.get("remarks"):
        return f"This is {_escape('; '.join(remarks))}."
    if competition(run).release.compare:
        return "A rehearsal: they are given the plain images too, to compare with."
    return "They are not given the images without it."


def _page(run: Run, parts: list[str]) -> str:
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
with their models (THEMIS). {_shown_plain(run)}</footer>
</body>
</html>
"""
