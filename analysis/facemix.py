"""Tables and figures of FaceMix runs, the tables beside the published ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pudica.analysis.drawing import COLOURS, draw_curves, label_points, new_figure, plot_style, save
from pudica.analysis.published import load_paper_table
from pudica.analysis.runs import Run, RunPaths, find_value, open_runs_of, select
from pudica.analysis.spread import average_seeds, drop_columns
from pudica.analysis.summary import build_table
from pudica.clients.shields import ShieldConfig
from pudica.clients.shields.mixing import MixingConfig, group_size
from pudica.clients.shields.obfuscation import AdditiveNoiseConfig, LowResolutionConfig
from pudica.models.errors import RequestError
from pudica.strategies.core.session import CLOUD
from pudica.strategies.facemix.config import FacemixConfig

LABELS = ("run", "experiment", "case", "place", "shield", "pre")
RATES = ("accuracy", "balanced_accuracy")
COSTS = ("edge_parameters", "edge_macs", "macs")
ATTACKS = ("attributes", "identity", "separation", "reconstruction")
SUCCESSES = {
    "success": "success",
    "in_the_clear": "success_in_the_clear",
    "known_groups": "success_known_groups",
    "of_the_mixtures": "success_of_the_mixtures",
    "chance": "chance",
}
SIMILARITIES = (
    *("psnr", "ssim", "mse", "psnr_of_the_mean", "psnr_in_the_clear", "psnr_known_groups"),
    *("correlation", "correlation_known_groups", "correlation_of_the_mixtures"),
)
PAPER_TABLES = {"celeba": "facemix_table2", "lfwa": "facemix_table3"}
BLOCKS = {"maxpool": 1, "layer1.0": 2, "layer1.1": 3}
"""Number of ResNet-18 blocks computed by the edge, by its last layer."""


def facemix_accuracy(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return each case's costs, accuracy and success of attacks: Tables 2 and 3.

    Runs are named, and errors raised, as by :func:`pudica.analysis.load`.
    Runs that differ only by their seed are taken together, unless ``spread`` is False; see
    :func:`pudica.analysis.spread.average_seeds` for the intervals ``…_ci`` and for ``n``.

    Returns
    -------
    DataFrame
        A row per run and case: ``run, experiment, case, place, shield, pre``;
        ``edge_parameters``; ``edge_mmacs``, multiplications of an image in millions, and
        ``edge_share`` of all multiplications in per cent; ``accuracy`` and ``balanced_accuracy``
        on test images, means over attributes in per cent, and ``published``, the paper's accuracy
        where it has the setting on these data (CelebA, LFWA); the attacks' balanced success in per
        cent, for attacks that were run (``pudica attack``): ``attack_attributes``,
        ``attack_identity``, and ``attack_separation`` and ``attack_reconstruction``, the
        model's accuracy on unmixed features and on reconstructed images;
        ``reconstruction_mse``, of pixels in [0, 1].
    """
    opened = open_runs_of("facemix", runs)
    rows = [row for run in opened for row in _accuracy_rows(run)]
    numbers = ["edge_parameters", "edge_mmacs", "edge_share", *RATES, "published"]
    numbers += [*(f"attack_{name}" for name in ATTACKS), "reconstruction_mse"]
    frame = build_table(rows, LABELS, numbers).astype({"edge_parameters": "int64"})
    return average_seeds(frame, opened, ["case"], spread)


def facemix_transmission(
    runs: RunPaths,
    up: float = 15.0,
    down: float = 30.0,
    delay: float = 25.0,
    spread: bool = True,
) -> pd.DataFrame:
    """Return the traffic of one image, and how long it takes: Table 1.

    Parameters
    ----------
    up, down : float
        Megabits per second; by default the paper's, for LTE.
    delay : float
        Milliseconds each way.

    Returns
    -------
    DataFrame
        A row per run and case: ``run, case``; ``bytes_up, bytes_down`` of one image, including
        its share of decoys; ``milliseconds`` both ways; whether the cloud gets ``input`` and
        ``output`` in the clear, behind a shield, or not at all.
    """
    rows, opened = [], open_runs_of("facemix", runs)
    for run in opened:
        for labels, measured, settings in _iterate_cases(run):
            costs = select(measured, stage="costs")
            if costs.empty:
                continue
            sent = find_value(costs, metric="bytes_up") or 0
            returned = find_value(costs, metric="bytes_down") or 0
            seconds = 8 * sent / (up * 1e6) + 8 * returned / (down * 1e6) + 2 * delay / 1e3
            row = {
                "run": run.name,
                "case": labels["case"],
                "bytes_up": round(sent),
                "bytes_down": round(returned),
            }
            if settings.place == "edge":
                rows.append({**row, "milliseconds": 0.0, "input": "none", "output": "none"})
                continue
            hidden = "in the clear" if _is_unprotected(settings) else "behind the shield"
            hidden = "anonymised" if settings.anonymiser else hidden
            mixed = settings.place == "both" or group_size(settings.around) > 1
            output = hidden if mixed else "in the clear"
            rows.append({**row, "milliseconds": 1e3 * seconds, "input": hidden, "output": output})
    columns = ["run", "case", "bytes_up", "bytes_down", "milliseconds", "input", "output"]
    return average_seeds(pd.DataFrame(rows, columns=columns), opened, ["case"], spread)


def facemix_attributes(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return each case's accuracy on each attribute.

    Returns
    -------
    DataFrame
        A row per run, case and attribute: ``run, case, attribute``; ``accuracy`` and
        ``balanced_accuracy`` on test images, in per cent.
    """
    rows, opened = [], open_runs_of("facemix", runs)
    for run in opened:
        for labels, measured, _ in _iterate_cases(run):
            tests = select(measured, stage="test").dropna(subset="attribute")
            for attribute, own in tests.groupby("attribute", sort=False):
                rates = {rate: find_value(own, 100, metric=rate) for rate in RATES}
                row = {"run": run.name, "case": labels["case"], "attribute": attribute}
                rows.append(row | rates)
    frame = build_table(rows, ("run", "case", "attribute"), RATES)
    return average_seeds(frame, opened, ["case", "attribute"], spread)


def facemix_attacks(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return the success of attacks, beside the controls that show whether they work at all.

    Returns
    -------
    DataFrame
        A row per run, case and attack: ``run, case, attack``; in per cent, means over classes:
        ``success``, for ``separation`` and ``reconstruction`` the model's accuracy on unmixed
        features or reconstructed images; ``in_the_clear``, the same attack without the shield,
        for ``separation`` the model's accuracy on the same images; ``known_groups``, for
        ``separation``, if the attacker knows which mixtures belong together, as without
        shuffling; ``of_the_mixtures``, on the mixtures as they are; ``chance``, of blind
        guessing.
    """
    opened = open_runs_of("facemix", runs)
    table = _build_attack_table(opened, ATTACKS, SUCCESSES, 100)
    # Older versions did not measure the success of reconstructions.
    table = table.dropna(subset=["success"])
    return average_seeds(table, opened, ["case", "attack"], spread)


def facemix_reconstructions(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return the similarity of reconstructed images to the originals.

    Returns
    -------
    DataFrame
        A row per run, case and attack that reconstructs images: ``run, case, attack``; ``psnr``
        (dB), ``ssim``, and ``mse`` of pixels in [0, 1]; ``psnr_of_the_mean``, of the mean image,
        which needs no attack; ``psnr_in_the_clear``, without the shield; for ``separation``
        ``psnr_known_groups``, and ``correlation``, the mean absolute correlation of a true
        feature map with its best match, also with ``_known_groups``, and ``_of_the_mixtures``.
    """
    opened = open_runs_of("facemix", runs)
    table = _build_attack_table(opened, ATTACKS[2:], {name: name for name in SIMILARITIES}, 1)
    return average_seeds(table, opened, ["case", "attack"], spread)


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return the tables that ``pudica show`` prints, by title."""
    accuracy = facemix_accuracy(runs)
    # A case is mostly called after these, and attacks have a table of their own.
    left_out = ["place", "shield", "pre", *(f"attack_{name}" for name in ATTACKS)]
    return {
        "Accuracy on test images, and what the edge pays": drop_columns(accuracy, left_out),
        "What crosses for one image, over 15 and 30 Mbit/s": facemix_transmission(runs),
        "How often attackers are right, mean over classes (%)": facemix_attacks(runs),
        "Images that attacks rebuilt": facemix_reconstructions(runs),
    }


def methods(run: Run) -> Iterator[dict[str, Any]]:
    """Yield each case's row of :func:`pudica.analysis.compare`."""
    for row in facemix_accuracy([run]).to_dict("records"):
        after = f" after {row['pre']}" if row["pre"] else f", all on the {row['place']}"
        yield {
            "case": row["case"],
            "method": f"{row['shield']}{after}",
            "accuracy": row["accuracy"],
            "edge_mmacs": row["edge_mmacs"],
        }


def case_settings(run: Run) -> dict[str, FacemixConfig]:
    """Return the settings of each case of a run; RequestError as of :meth:`Run.section`."""
    return run.section("facemix", FacemixConfig).each_case()


def _iterate_cases(run: Run) -> Iterator[tuple[dict[str, Any], pd.DataFrame, FacemixConfig]]:
    """Yield each case's labels, its measurements over all edges, and its settings."""
    rows = select(run.frame, node=CLOUD)
    if "attribute" not in rows:
        rows = rows.assign(attribute=None)
    for case, settings in case_settings(run).items():
        labels = {
            "run": run.name,
            "experiment": run.info.get("experiment", ""),
            "case": case,
            "place": settings.place,
            "shield": "anonymiser" if settings.anonymiser else _describe_shield(settings.around),
            "pre": settings.pre if settings.place == "both" else "",
        }
        yield labels, select(rows, case=case), settings


def _describe_shield(shield: ShieldConfig) -> str:
    match shield:
        case MixingConfig(group=group):
            return f"mixing of {group}"
        case AdditiveNoiseConfig(variance=variance):
            return f"noise N(0,{variance:g})"
        case LowResolutionConfig(side=side):
            return f"{side}x{side} pixels"
    return shield.name


def _is_unprotected(settings: FacemixConfig) -> bool:
    own = settings.around
    return own.name == "none" or (isinstance(own, MixingConfig) and own.group == 1)


def _accuracy_rows(run: Run) -> Iterator[dict[str, Any]]:
    for labels, measured, settings in _iterate_cases(run):
        means = measured[measured["attribute"].isna()]
        tests = select(means, stage="test")
        if tests.empty:  # the run may be in progress
            continue
        costs = {name: find_value(means, stage="costs", metric=name) or 0 for name in COSTS}
        rebuilt = find_value(means, stage="attack reconstruction", metric="mse")
        yield {
            **labels,
            "edge_parameters": costs["edge_parameters"],
            "edge_mmacs": costs["edge_macs"] / 1e6,
            "edge_share": 100 * costs["edge_macs"] / costs["macs"] if costs["macs"] else None,
            **{rate: find_value(tests, 100, metric=rate) for rate in RATES},
            "published": _find_published(run, settings),
            **{
                f"attack_{name}": find_value(means, 100, stage=f"attack {name}", metric="success")
                for name in ATTACKS
            },
            "reconstruction_mse": rebuilt,
        }


def _build_attack_table(
    runs: Sequence[Run], attacks: Sequence[str], metrics: dict[str, str], scale: float
) -> pd.DataFrame:
    """Return a row for each case and attack that was run; ``metrics`` by column."""
    rows = []
    for run in runs:
        for labels, measured, _ in _iterate_cases(run):
            for attack in attacks:
                own = select(measured[measured["attribute"].isna()], stage=f"attack {attack}")
                found = {name: find_value(own, scale, metric=m) for name, m in metrics.items()}
                if not own.empty:
                    row = {"run": run.name, "case": labels["case"], "attack": attack}
                    rows.append(row | found)
    return build_table(rows, ("run", "case", "attack"), [*metrics])


def _find_published(run: Run, settings: FacemixConfig) -> float | None:
    """Return the published test accuracy of a case, if any."""
    # A run of somebody's own app says nothing of its data.
    file = PAPER_TABLES.get(run.settings.get("data", {}).get("name"))
    if file is None:
        return None
    published, name = load_paper_table(file).set_index("method"), _paper_name(settings)
    return float(published["test_accuracy"][name]) if name in published.index else None


def _paper_name(settings: FacemixConfig) -> str:
    """Return the name of a case in the paper's table, empty if there is none."""
    if settings.place == "edge" or settings.anonymiser:
        return "face anonymizer" if settings.anonymiser else "all on edge"
    match settings.around:
        case MixingConfig(group=group) if settings.place == "both" and settings.pre in BLOCKS:
            return f"FaceMix S_G={group} N_pre={BLOCKS[settings.pre]}"
        case AdditiveNoiseConfig(variance=variance) if settings.place == "cloud":
            return f"noise N(0,{variance:g})"
        case LowResolutionConfig(side=side) if settings.place == "cloud":
            return f"blur {side}x{side}"
    return "all on cloud" if settings.place == "cloud" and settings.around.name == "none" else ""


# ---------------------------------------------------------------------------- figures


def figures(run: Run) -> Iterator[tuple[str, Figure | None]]:
    """Yield name and figure for everything that was measured."""
    yield "training", _draw_training(run)
    yield "trade-off", _draw_trade_off([run])
    yield "attributes", _draw_attributes(run)


def _draw_training(run: Run) -> Figure | None:
    """Draw training loss and validation accuracy behind the shield, a line per case."""
    rows = select(run.frame, stage="validation", metric="accuracy", shield="on")
    if "attribute" in rows:
        rows = rows[rows["attribute"].isna()]
    wide = rows.pivot_table(index="round", columns="case", values="value", sort=False)
    panels = {
        "mean training loss": run.curves("training", "loss"),
        "accuracy on validation\nimages (%)": 100 * wide.sort_index(),
    }
    title = f"Training behind the shield — {run.name}"
    return draw_curves(panels, list(case_settings(run)), "epochs", title)


def facemix_trade_off(runs: RunPaths, path: str | Path) -> Path:
    """Draw the cases of several runs together: Figure 4 of paper 003.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        As of :func:`pudica.analysis.load`. Cases of the same name share a colour.
    path : str or Path
        Path of the PNG.

    Raises
    ------
    RequestError
        As of :func:`pudica.analysis.load`; or if there are fewer than two cases.
    """
    with plot_style():
        figure = _draw_trade_off(open_runs_of("facemix", runs))
        if figure is None:
            raise RequestError("a trade-off is drawn of two cases at least")
        return save(figure, Path(path))


def _draw_trade_off(runs: Sequence[Run]) -> Figure | None:
    """Draw accuracy against the edge's computation and the success of attacks: Figure 4."""
    table = facemix_accuracy(runs, spread=False)
    cases = table["case"].unique().tolist()
    if len(cases) < 2:
        return None
    # A case that occurs in several runs is labelled with its run.
    often = table.groupby("case")["run"].transform("size") > 1
    table["label"] = table["case"].where(~often, table["case"] + " (" + table["run"] + ")")
    paint = {case: COLOURS[i % len(COLOURS)] for i, case in enumerate(cases)}
    colours = dict(zip(table["label"], table["case"].map(paint), strict=True))
    panels = {"edge_share": "share of the multiplications on the edge (%)"}
    for name in (f"attack_{attack}" for attack in ATTACKS):
        if len({*table["case"][table[name].notna()]}) > 1:
            panels[name] = f"{name.replace('_', ' ')}: balanced success (%)"
    names = [run.name for run in runs] if len(runs) == 1 else table["experiment"].unique()
    title = f"Accuracy, effort and attacks — {', '.join(names)}"
    figure = new_figure(7.5, 0.6 + 2.9 * len(panels), title)
    column = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    points = {}
    for axes, (name, what) in zip(column, panels.items(), strict=True):
        there = table.dropna(subset=name)
        places = zip(there[name].tolist(), there["accuracy"].tolist(), strict=True)
        points[name] = dict(zip(there["label"], places, strict=True))
        for label, place in points[name].items():
            axes.plot(*place, "o", color=colours[label], clip_on=False)
        axes.set_xlabel(what)
        axes.set_ylabel("test accuracy (%)")
        axes.margins(0.12)
        # The full range, so that small differences look small.
        if name == "edge_share":
            most = max([*there[name], 1.0])
            axes.set_xlim(-0.05 * most, 1.15 * most)
        else:
            axes.set_xlim(min(45.0, there[name].min() - 3), 108.0)
    for axes, name in zip(column, panels, strict=True):
        label_points(figure, axes, points[name], colours)
    return figure


def _draw_attributes(run: Run) -> Figure | None:
    """Draw the success of inferring each attribute, behind the shield and in the clear."""
    measured = select(run.frame, stage="attack attributes")
    if "attribute" not in measured or measured["attribute"].isna().all():
        return None
    measured = measured.dropna(subset="attribute")
    names = measured["attribute"].unique().tolist()
    figure = new_figure(7.5, 1.4 + 0.3 * len(names), f"Attributes that attackers tell — {run.name}")
    axes = figure.subplots()
    for i, (case, rows) in enumerate(measured.groupby("case", sort=False)):
        own = rows.pivot_table(index="attribute", columns="metric", values="value")
        colour = COLOURS[i % len(COLOURS)]
        places = [names.index(name) for name in own.index]
        axes.plot(100 * own["success"], places, "o", color=colour, label=case)
        clear = 100 * own["success_in_the_clear"]
        axes.plot(clear, places, "o", color=colour, markerfacecolor="none", alpha=0.6)
    axes.axvline(50, color="#999999", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("balanced success (%); hollow: without the shield; 50: a guess")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure
