"""Tables of FaceMix runs, beside the published ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from pudica.analysis.layout import drop_run_names
from pudica.analysis.runs import Run, RunPaths, open_runs_of
from pudica.clients.shields import ShieldConfig
from pudica.clients.shields.mixing import MixingConfig, group_size
from pudica.clients.shields.obfuscation import AdditiveNoiseConfig, LowResolutionConfig
from pudica.strategies.core.session import CLOUD
from pudica.strategies.facemix.config import FacemixConfig

SETTINGS = ["run", "experiment", "case", "place", "shield", "pre"]
RATES = ("accuracy", "balanced_accuracy")
COSTS = ("edge_parameters", "edge_macs", "macs", "bytes_up", "bytes_down")
ATTACKS = ("attributes", "identity", "separation", "reconstruction")
TABLES = {"celeba": "table2"}
BLOCKS = {"maxpool": 1, "layer1.0": 2, "layer1.1": 3}
"""Number of ResNet-18 blocks computed by the edge, by its last layer."""


def facemix_accuracy(runs: RunPaths) -> pd.DataFrame:
    """Return each case's costs, accuracy and success of attacks: Tables 2 and 3.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        As of :func:`pudica.analysis.load`.

    Returns
    -------
    DataFrame
        A row per run and case: ``run, experiment, case, place, shield, pre``;
        ``edge_parameters``; ``edge_mmacs``, multiplications of an image in millions, and
        ``edge_share`` of all multiplications in per cent; ``accuracy`` and ``balanced_accuracy``
        on test images, means over attributes in per cent, and ``published``, the paper's accuracy
        where it has the setting on these data (CelebA); the attacks' balanced success in per
        cent, for attacks that were run (``pudica attack``): ``attack_attributes``,
        ``attack_identity``, and ``attack_separation`` and ``attack_reconstruction``, the
        model's accuracy on unmixed features and on reconstructed images;
        ``reconstruction_mse``, of pixels in [0, 1].
    """
    rows = [row for run in open_runs_of("facemix", runs) for row in _accuracy_rows(run)]
    numbers = ["edge_parameters", "edge_mmacs", "edge_share", *RATES, "published"]
    numbers += [*(f"attack_{name}" for name in ATTACKS), "reconstruction_mse"]
    frame = pd.DataFrame(rows, columns=[*SETTINGS, *numbers])
    return frame.astype({**dict.fromkeys(numbers, "float64"), "edge_parameters": "int64"})


def facemix_transmission(
    runs: RunPaths, up: float = 15.0, down: float = 30.0, delay: float = 25.0
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
    rows = [
        row
        for run in open_runs_of("facemix", runs)
        for row in _transmission_rows(run, up, down, delay)
    ]
    columns = ["run", "case", "bytes_up", "bytes_down", "milliseconds", "input", "output"]
    return pd.DataFrame(rows, columns=columns)


def facemix_attributes(runs: RunPaths) -> pd.DataFrame:
    """Return each case's accuracy on each attribute.

    Returns
    -------
    DataFrame
        A row per run, case and attribute: ``run, case, attribute``; ``accuracy`` and
        ``balanced_accuracy`` on test images, in per cent.
    """
    rows = []
    for run in open_runs_of("facemix", runs):
        for case, labels, measured in _iterate_cases(run):
            tests = measured[(measured["stage"] == "test") & measured["attribute"].notna()]
            for attribute, own in tests.groupby("attribute", sort=False):
                rates = {rate: _percent(own, rate) for rate in RATES}
                rows.append({"run": labels["run"], "case": case, "attribute": attribute, **rates})
    return pd.DataFrame(rows, columns=["run", "case", "attribute", *RATES])


def facemix_attacks(runs: RunPaths) -> pd.DataFrame:
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
    names = {
        "success": "success",
        "in_the_clear": "success_in_the_clear",
        "known_groups": "success_known_groups",
        "of_the_mixtures": "success_of_the_mixtures",
        "chance": "chance",
    }
    rows = [
        {**of, **{column: _percent(own, metric) for column, metric in names.items()}}
        for run in open_runs_of("facemix", runs)
        for of, own in _attack_measurements(run, ATTACKS)
    ]
    frame = pd.DataFrame(rows, columns=["run", "case", "attack", *names])
    # Older versions did not measure the success of reconstructions.
    return frame.astype(dict.fromkeys(names, "float64")).dropna(subset=["success"])


def facemix_reconstructions(runs: RunPaths) -> pd.DataFrame:
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
    names = [
        *("psnr", "ssim", "mse", "psnr_of_the_mean", "psnr_in_the_clear", "psnr_known_groups"),
        *("correlation", "correlation_known_groups", "correlation_of_the_mixtures"),
    ]
    rows = [
        {**of, **{name: _value(own, name) for name in names}}
        for run in open_runs_of("facemix", runs)
        for of, own in _attack_measurements(run, ATTACKS[2:])
    ]
    frame = pd.DataFrame(rows, columns=["run", "case", "attack", *names])
    return frame.astype(dict.fromkeys(names, "float64"))


def _attack_measurements(
    run: Run, attacks: Sequence[str]
) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield the labels and measurements of each case and attack that was run."""
    for case, labels, measured in _iterate_cases(run):
        for attack in attacks:
            tried = measured["stage"] == f"attack {attack}"
            own = measured[tried & measured["attribute"].isna()]
            if not own.empty:
                yield {"run": labels["run"], "case": case, "attack": attack}, own


def case_settings(run: Run) -> dict[str, FacemixConfig]:
    """Return the settings of each case of a run.

    Raises
    ------
    RequestError
        If another version of Pudica, with other settings, wrote the run.
    """
    return run.section("facemix", FacemixConfig).each_case()


def describe_shield(shield: ShieldConfig) -> str:
    """Describe a shield's settings briefly, for a table."""
    match shield:
        case MixingConfig(group=group):
            return f"mixing of {group}"
        case AdditiveNoiseConfig(variance=variance):
            return f"noise N(0,{variance:g})"
        case LowResolutionConfig(side=side):
            return f"{side}x{side} pixels"
    return shield.name


def _iterate_cases(run: Run) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Yield each case's name, its labels, and its measurements over all edges."""
    rows = run.frame[run.frame["node"] == CLOUD]
    rows = rows.reindex(columns=[*rows.columns, *({"attribute", "shield"} - {*rows.columns})])
    for case, settings in case_settings(run).items():
        labels = {
            "run": run.name,
            "experiment": run.info.get("experiment", ""),
            "case": case,
            "place": settings.place,
            "shield": "anonymiser" if settings.anonymiser else describe_shield(settings.around),
            "pre": settings.pre if settings.place == "both" else "",
        }
        yield case, labels, rows[rows["case"] == case]


def _accuracy_rows(run: Run) -> Iterator[dict[str, Any]]:
    for case, labels, measured in _iterate_cases(run):
        means = measured[measured["attribute"].isna()]
        tests = means[means["stage"] == "test"]
        if tests.empty:  # the run may be in progress
            continue
        costs = {name: _value(means[means["stage"] == "costs"], name) or 0 for name in COSTS}
        yield labels | {
            "edge_parameters": costs["edge_parameters"],
            "edge_mmacs": costs["edge_macs"] / 1e6,
            "edge_share": 100 * costs["edge_macs"] / costs["macs"] if costs["macs"] else None,
            **{rate: _percent(tests, rate) for rate in RATES},
            "published": _published_value(run, case_settings(run)[case]),
            **{
                f"attack_{name}": _percent(means[means["stage"] == f"attack {name}"], "success")
                for name in ATTACKS
            },
            "reconstruction_mse": _value(means[means["stage"] == "attack reconstruction"], "mse"),
        }


def _transmission_rows(run: Run, up: float, down: float, delay: float) -> Iterator[dict[str, Any]]:
    for case, labels, measured in _iterate_cases(run):
        costs = measured[measured["stage"] == "costs"]
        if costs.empty:
            continue
        settings = case_settings(run)[case]
        sent, returned = (_value(costs, f"bytes_{way}") or 0 for way in ("up", "down"))
        seconds = 8 * sent / (up * 1e6) + 8 * returned / (down * 1e6) + 2 * delay / 1e3
        alone = settings.place == "edge"
        hidden = "in the clear" if _is_unprotected(settings) else "behind the shield"
        hidden = "anonymised" if settings.anonymiser else hidden
        mixed = settings.place == "both" or group_size(settings.around) > 1
        back = hidden if mixed else "in the clear"
        yield {
            "run": labels["run"],
            "case": case,
            "bytes_up": round(sent),
            "bytes_down": round(returned),
            "milliseconds": 0.0 if alone else 1e3 * seconds,
            "input": "none" if alone else hidden,
            "output": "none" if alone else back,
        }


def _is_unprotected(settings: FacemixConfig) -> bool:
    own = settings.around
    return own.name == "none" or (isinstance(own, MixingConfig) and own.group == 1)


def _value(rows: pd.DataFrame, metric: str) -> float | None:
    own = rows[rows["metric"] == metric]["value"]
    return float(own.iloc[-1]) if len(own) else None


def _percent(rows: pd.DataFrame, metric: str) -> float | None:
    value = _value(rows, metric)
    return None if value is None else 100 * value


@cache
def _load_paper_table(table: str) -> pd.DataFrame:
    with (files("pudica.analysis") / "paper" / f"facemix_{table}.csv").open() as file:
        return pd.read_csv(file).set_index("method")


def _published_value(run: Run, settings: FacemixConfig) -> float | None:
    """Return the published test accuracy of a case, if any."""
    # A run of somebody's own app says nothing of its data.
    name, data = _paper_name(settings), run.settings.get("data", {}).get("name")
    if data not in TABLES or name not in _load_paper_table(TABLES[data]).index:
        return None
    return float(_load_paper_table(TABLES[data])["test_accuracy"][name])


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


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return the tables that ``pudica show`` prints, by title."""
    found = {
        "Accuracy on test images, and what the edge pays": _without_attacks(runs),
        "What crosses for one image, over 15 and 30 Mbit/s": facemix_transmission(runs),
        "How often attackers are right, mean over classes (%)": facemix_attacks(runs),
        "Images that attacks rebuilt": facemix_reconstructions(runs),
    }
    return drop_run_names(found, runs)


def _without_attacks(runs: Sequence[Run]) -> pd.DataFrame:
    """Leave out what a case is called after, and the attacks, which have a table of their own."""
    table = facemix_accuracy(runs)
    attacks = [name for name in table if str(name).startswith("attack_")]
    return table.drop(columns=["place", "shield", "pre", *attacks])
