"""``pudica node budget``: the privacy a node has spent so far, and what its settings promise."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from pudica.clients.assignments import USUAL_DELTA
from pudica.clients.runtime.node import NodeConfig
from pudica.clients.runtime.odometer import Entry, Odometer, activations, anchor_of, count, spent
from pudica.clients.runtime.vault import Vault, deployed_lasting
from pudica.models.errors import RequestError

COLUMNS = ("run", "case", "what", "images", "times", "each costs", "last")


def read_entries(config: NodeConfig) -> list[Entry]:
    """Read all entries of a node's odometer.

    Raises
    ------
    RequestError
        If the odometer was reset to an earlier state, or is damaged.
    """
    lasting = deployed_lasting(config.vault)
    try:
        return Odometer(Vault(lasting, lasting), anchor_of(lasting)).entries()
    except RuntimeError as error:
        raise RequestError(str(error)) from error


def build_table(entries: list[Entry]) -> pd.DataFrame:
    """Return a table with a row for each kind of release."""
    times = count(entries)
    last = {entry.release: entry.at for entry in entries}
    rows = [
        (r.run, r.case, r.what, r.part, number, _format_cost(r.noise, r.ratio), last[r])
        for r, number in times.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _format_cost(noise: str | None, ratio: float) -> str:
    if noise is None:
        return "no guarantee"
    return f"ε = {ratio:.4g}" if noise == "laplace" else f"Gaussian, μ = {ratio:.4g}"


def describe_balance(config: NodeConfig, entries: list[Entry]) -> list[str]:
    """Describe what is spent and what is left."""
    epsilon, delta = config.total
    times = count(entries)
    used = spent(times, delta or USUAL_DELTA)
    lines = [f"activations of any one image have left at most {_format_times(activations(times))}"]
    if math.isinf(used):
        lines.append("spent: no finite ε, since something was released without a guarantee")
    else:
        lines.append(f"spent: {_format_epsilon(used, delta)}")
    if epsilon is None:
        lines.append("budget: none, since these settings promise no ε")
    else:
        left = max(0.0, epsilon - used)
        lines.append(f"budget: {_format_epsilon(epsilon, delta)}; left, added up: ε = {left:.4g}")
    return lines


def describe_promises(config: NodeConfig) -> list[str]:
    """Describe what a node releases at most, with which guarantee, and what it refuses."""
    return [line for system in config.systems for line in _describe_system(system, config)]


def _describe_system(system: str, config: NodeConfig) -> Iterator[str]:
    if config.guarantees and system != "split":
        yield f"{system}: refused, since this node's images are under a budget"
    elif system == "split":
        yield from _describe_split(config)
    elif system == "themis":
        yield "themis: gradients and accuracies of its model on public images; no ε"
    else:
        yield f"{system}: {_describe_protection(system, config)}; no ε: it is obfuscation"
        yield f"{system}: {_describe_reports(config)}"


def _describe_protection(system: str, config: NodeConfig) -> str:
    if system == "dlmt" and config.key:
        suffix = f", and only in {config.train} training" if config.train else ""
        return f"images, or models trained on them, disguised with its own key{suffix}"
    if system == "facemix" and config.mixing:
        return f"mixtures of at least {config.mixing} images' features, with secret keys"
    return "whatever the organiser asks for" if config.trust_organiser else "refused"


def _describe_split(config: NodeConfig) -> Iterator[str]:
    if config.shield is None:
        yield f"split: {_describe_protection('split', config)}; no ε"
        return
    name, epsilon = config.shield["name"], config.shield["epsilon"]
    fronts = " or ".join(config.allowed_fronts)
    cut = (
        f"after layer {config.cut}" if config.cut else "after the layer that the organiser chooses"
    )
    pinned = f"the one with the digest {config.front}" if config.front else "one for each case"
    yield (
        f"split: activations {cut}, of a front that is {fronts} ({pinned}), protected by {name} "
        f"with ε = {epsilon:g} or less and secret noise"
    )
    if config.guarantees:
        yield (
            f"split: clip as the organiser chooses at the first join of a case; "
            f"δ {_format_delta(config.shield.get('delta'))} or less"
        )
    yield (
        f"split: activations of an image leave at most {_format_times(config.activations)}, in all "
        "runs together"
    )
    total, delta = config.total
    if total is None:
        yield "split: no ε is promised: this is the paper's noise, for comparison"
    else:
        yield (
            f"split: (ε, δ) of an image, in all runs together: {total:.4g}, {_format_delta(delta)}"
            "; labels and the number of images are public"
        )
    yield f"split: {_describe_reports(config)}"
    yield (
        "split: refused: other fronts or settings within a case, activations without noise, "
        "answers about training images, gradients or weights of the front"
        if "average" not in config.allowed_fronts and "handoff" not in config.allowed_fronts
        else "split: gradients or weights of the front leave in the clear"
    )


def _describe_reports(config: NodeConfig) -> str:
    return {
        "none": "reports no accuracies",
        "noisy": "reports accuracies on validation and test images with discrete Laplace noise, "
        "charged to these images' budget",
        "exact": "reports exact accuracies on validation and test images, which a cheating "
        "organiser can use to read them",
    }[config.reports]


def _format_delta(delta: float | None) -> str:
    return f"{delta:.4g}" if delta else f"{USUAL_DELTA:g} (1/n of n images, if that is less)"


def _format_epsilon(epsilon: float, delta: float | None) -> str:
    return f"ε = {epsilon:.4g} (δ = {delta or USUAL_DELTA:.4g})"


def _format_times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
