"""``pudica attack``: attacks by the cloud of a finished run on what it saw."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pudica.analysis.attacks import Effort, FacemixView, Outcome, Target, attacks
from pudica.analysis.attacks.base import CROSSED, ORIGINAL, Metrics
from pudica.analysis.drawing import draw_image_rows, plot_style, save
from pudica.analysis.runs import Run, open_run
from pudica.analysis.views.releases import depict
from pudica.clients.data import DataConfig, Splits, load
from pudica.clients.runtime.systems import systems
from pudica.models.compute import Compute
from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.files import save_tensors, write_atomically
from pudica.models.printable import to_nfc
from pudica.models.randomness import derive
from pudica.simulations.replaying import replay
from pudica.strategies.core.experiment import ClientConfig
from pudica.strategies.core.session import CLOUD
from pudica.strategies.core.wire_log import Exchanged
from pudica.strategies.loading import validated

LAST_FILES = ("model.safetensors", "generator.npz")
"""What cases keep in the end."""
OpenTargets = Callable[
    [Run, str, int, int, Callable[[Callable[[Exchanged], None]], None]], Sequence[Any]
]


def attack(
    run: Path,
    cases: Sequence[str],
    kinds: Sequence[str],
    effort: Effort,
    people: Splits | None,
    notify: Callable[[str], None],
) -> None:
    """Attack cases of a run; save metrics with its tables, and pictures with its plots.

    Parameters
    ----------
    cases : sequence of str
        Cases to attack; if empty, all finished cases in which something leaves the nodes.
    kinds : sequence of str
        Attacks; if empty, all that apply, ``identity`` only with ``people``.
    people : Splits or None
        Images of known people, labelled with the person.
    notify : callable
        Called with a line about each step.

    Raises
    ------
    RequestError
        An unknown attack or case, one that does not fit, or a system without attacks; as of
        :func:`.replay`.
    """
    opened = open_run(run)
    validate_kinds(kinds)
    if "identity" in kinds and people is None:
        raise RequestError("identity: name images of known people with --data")
    openers = list_targets(opened)
    chosen = [*map(to_nfc, cases)] or _list_finished(opened, openers)
    for case in chosen:
        if case not in openers:
            raise RequestError(
                f"{opened.name}: no case '{case}' in which something leaves the nodes; allowed: "
                f"{', '.join(openers) or '(none)'}"
            )
        if not is_finished(opened, case):
            raise RequestError(f"{opened.name}: case '{case}' is not done yet")
    with Compute(opened.section("client", ClientConfig)).use_threads():
        for case in chosen:
            found = open_targets(opened, case, openers[case], effort, notify)
            if people is not None:
                found = [_with_people(target, people) for target in found]
            for kind in kinds or _list_fitting(found, case):
                attack_targets(opened, case, kind, found, effort, notify)


def validate_kinds(kinds: Sequence[str]) -> None:
    """Raise RequestError if there is no such attack."""
    for kind in kinds:
        if kind not in attacks():
            raise unknown_name_error("attack", kind, attacks())


def open_targets(
    run: Run, case: str, opener: OpenTargets, effort: Effort, notify: Callable[[str], None]
) -> Sequence[Any]:
    """Return what there is to attack of a case; errors as of :func:`attack`."""
    again = partial(_replay, run, case, notify)
    return opener(run, case, effort.images, effort.seed, again)


def list_targets(run: Run) -> Mapping[str, OpenTargets]:
    """Return by case what opens its target."""
    system = systems().get(str(run.info.get("system")))
    find = system.part("targets") if system else None
    if find is None:
        able = ", ".join(name for name, each in systems().items() if each.targets)
        raise RequestError(
            f"{run.name}: is a run of {run.info.get('system')}; attacks are for runs of {able}"
        )
    found: Mapping[str, OpenTargets] = find(run)
    return found


def _list_finished(run: Run, targets: Mapping[str, OpenTargets]) -> list[str]:
    done = [case for case in targets if is_finished(run, case)]
    if not done:
        raise RequestError(f"{run.name}: no case is done yet in which something leaves the nodes")
    return done


def is_finished(run: Run, case: str) -> bool:
    """Return whether a case is done, also of a run that goes on."""
    return any((run.directory / case / name).is_file() for name in LAST_FILES)


def _with_people(target: object, people: Splits) -> object:
    return replace(target, people=people) if isinstance(target, FacemixView) else target


def _list_fitting(targets: Sequence[object], case: str) -> list[str]:
    reasons = {kind: attack.explain_unfit(targets) for kind, attack in attacks().items()}
    fitting = [kind for kind, why in reasons.items() if not why]
    if not fitting:
        listed = "; ".join(f"{kind}: {why}" for kind, why in reasons.items())
        raise RequestError(f"no attack fits case '{case}': {listed}")
    return fitting


def _replay(
    run: Run, case: str, notify: Callable[[str], None], note: Callable[[Exchanged], None]
) -> None:
    notify(f"{case}: once more, to see what crosses …")
    replay(run, case, note, notify)


def attack_targets(
    run: Run,
    case: str,
    kind: str,
    targets: Sequence[Any],
    effort: Effort,
    notify: Callable[[str], None],
) -> None:
    """Attack a case in one way, and save what came out; RequestError if it does not fit."""
    attack = attacks()[kind]
    if why := attack.explain_unfit(targets):
        fitting = ", ".join(_list_fitting(targets, case))
        raise RequestError(f"{kind}: in case '{case}' {why}; allowed: {fitting}")
    notify(f"{case}: {kind} …")
    began, target = time.perf_counter(), attack.find_target(targets)
    outcome = attack.run(target, effort)
    seconds = time.perf_counter() - began
    if pictures := _add_crossed(outcome.pictures, target):
        _save_pictures(run, case, kind, pictures)
    metrics = effort._asdict() | outcome.metrics | {"seconds": seconds}
    _save_metrics(run, case, kind, metrics, outcome)
    notify(f"{case}: {kind}: {seconds:.1f} s")


def _add_crossed(pictures: Mapping[str, np.ndarray], target: object) -> dict[str, np.ndarray]:
    """Put what crossed below the true images, where it can be drawn."""
    if ORIGINAL not in pictures or not isinstance(target, Target):
        return dict(pictures)
    crossed = depict(target.view, len(pictures[ORIGINAL]))
    return {ORIGINAL: pictures[ORIGINAL], CROSSED: crossed, **pictures}


def _save_pictures(run: Run, case: str, kind: str, pictures: Mapping[str, np.ndarray]) -> None:
    with plot_style():
        figure = draw_image_rows(pictures, f"{kind}: {case} — {run.name}")
        save(figure, run.directory / "plots" / f"{case}-{kind}.png")
    # Copies: where nothing protects, a drawing is its own control, and may not be kept twice.
    tensors = {name: torch.from_numpy(p.copy()) for name, p in pictures.items()}
    save_tensors(run.directory / case / f"attack-{kind}.safetensors", tensors, {})


def load_known_people(name: str, settings: list[str], run: Path) -> Splits:
    """Load images of known people: a data set, with settings ``KEY=VALUE`` of its section.

    Raises
    ------
    RequestError, DataError
        If they are not available, or not of the shape of the run's images.
    """
    opened = open_run(run)
    run_data = opened.section("data", DataConfig)
    config = validated(DataConfig, {"name": name, "split": "9:1"}, "data", settings)
    seed = derive(int(opened.info["seed"]), "people")
    splits, shape = load(config, seed), load(run_data, seed).shape
    if splits.shape != shape:
        sizes = ["x".join(map(str, each)) for each in (splits.shape, shape)]
        raise RequestError(
            f"--data: images of {sizes[0]}, the model is for {sizes[1]}; "
            f"--set channels={shape[0]} --set 'image_size={list(shape[1:])}'"
        )
    return splits


def _save_metrics(run: Run, case: str, kind: str, metrics: Metrics, outcome: Outcome) -> None:
    row = {"stage": f"attack {kind}", "round": 0, "node": CLOUD, "case": case}
    each = [(row, metrics)]
    each += [({**row, "attribute": name}, own) for name, own in outcome.attributes.items()]
    lines = [
        json.dumps({**tags, "metric": name, "value": value})
        for tags, measured in each
        for name, value in measured.items()
        if math.isfinite(value)
    ]
    write_atomically(run.directory / case / f"attack-{kind}.jsonl", "\n".join(lines).encode())
