"""``pudica attack``: attacks by the cloud of a finished run on what it saw."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pudica.analysis.attacks import (
    View,
    attribute_accuracies,
    infer_attributes,
    infer_identity,
    reconstruct,
    reconstruct_unmixed,
    score_mixtures,
    score_plain,
    train_generator,
    unmix,
)
from pudica.analysis.attacks.view import mean
from pudica.analysis.drawing import draw_image_rows, plot_style, save, stretch
from pudica.analysis.facemix import case_settings
from pudica.analysis.runs import Run, open_run
from pudica.clients.data import DataConfig, ImageSet, Splits, load
from pudica.clients.shields.mixing import padded_count
from pudica.models.compute import Compute
from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.files import write_atomically
from pudica.models.printable import to_nfc
from pudica.models.randomness import derive
from pudica.strategies.core.experiment import ClientConfig
from pudica.strategies.core.session import CLOUD
from pudica.strategies.facemix.system import MODEL
from pudica.strategies.loading import validated

SHOWN = 8
CLEAR = "_in_the_clear"

Metrics = dict[str, float]


class Effort(NamedTuple):
    """How much effort attacks spend: epochs of training, images to rebuild, requests to unmix."""

    epochs: int
    images: int
    requests: int
    seed: int


class Outcome(NamedTuple):
    """What an attack measured, also of each attribute, and the rows of its figure if any."""

    metrics: Metrics
    pictures: Mapping[str, np.ndarray]
    attributes: Mapping[str, Metrics] = {}


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
        Cases to attack; if empty, all finished cases in which something leaves the edge.
    kinds : sequence of str
        Attacks; if empty, all that apply, ``identity`` only with ``people``.
    people : Splits or None
        Images of known people, labelled with the person.
    notify : callable
        Called with a line about each step.

    Raises
    ------
    RequestError
        As of :meth:`View.of`; an unknown attack; ``identity`` without people.
    """
    opened = open_run(run)
    if opened.info.get("system") != "facemix":
        raise RequestError(f"{run}: attacks are for runs of the system facemix")
    for kind in kinds:
        if kind not in ATTACKS:
            raise unknown_name_error("attack", kind, ATTACKS)
    if "identity" in kinds and people is None:
        raise RequestError("identity: name images of known people with --data")
    with Compute(opened.section("client", ClientConfig)).use_threads():
        for case in [*map(to_nfc, cases)] or _list_attackable_cases(opened):
            view = View.of(opened, case)
            for kind in kinds:
                if why := _explain_unfit(kind, view, people):
                    raise RequestError(f"{kind}: in case '{case}' {why}")
            fitting = (kind for kind in ATTACKS if not _explain_unfit(kind, view, people))
            for kind in kinds or fitting:
                notify(f"{case}: {kind} …")
                began = time.perf_counter()
                outcome = ATTACKS[kind](view, effort, people)
                _save_metrics(opened, case, kind, effort._asdict() | outcome.metrics, outcome)
                notify(f"{case}: {kind}: {time.perf_counter() - began:.1f} s")
                if outcome.pictures:
                    with plot_style():
                        title = f"{kind}: {case} — {opened.name}"
                        figure = draw_image_rows(outcome.pictures, title)
                        save(figure, opened.directory / "plots" / f"{case}-{kind}.png")


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


def _list_attackable_cases(run: Run) -> list[str]:
    """Return the finished cases in which something leaves the edge."""
    cases = case_settings(run).items()
    attackable = [case for case, settings in cases if settings.place != "edge"]
    done = [case for case in attackable if (run.directory / case / MODEL).is_file()]
    if not done:
        raise RequestError(f"{run.name}: no case is done yet in which something leaves the edge")
    return done


def _explain_unfit(kind: str, view: View, people: Splits | None) -> str:
    """Return why an attack does not apply to a case, or "" if it does."""
    images, shape = len(view.data.test), tuple(view.model.shield.shape)
    if images < view.group:
        return f"there are {images} test images, fewer than a group of {view.group}"
    if kind == "identity":
        if people is None:
            return "people are not known"
        if (few := len(people.test)) < view.group:
            return f"{few} images of known people are fewer than a group of {view.group}"
    if kind == "separation" and view.group == 1:
        return "nothing is mixed"
    if kind in ("separation", "reconstruction") and (len(shape) < 3 or min(shape[1:]) < 2):
        return f"values of shape {shape} are sent, not feature maps of at least 2x2"
    return ""


def _attack_attributes(view: View, effort: Effort, _: Splits | None) -> Outcome:
    shielded, clear = (
        infer_attributes(sees, effort.epochs, effort.seed) for sees in (view, view.without_shield())
    )
    each = {
        name: {"success": rate, f"success{CLEAR}": clear.rates[name]}
        for name, rate in shielded.rates.items()
    }
    metrics = {"success": shielded.success, f"success{CLEAR}": clear.success}
    return Outcome({**metrics, "chance": shielded.chance}, {}, each)


def _attack_identity(view: View, effort: Effort, people: Splits | None) -> Outcome:
    if people is None:
        raise RequestError("identity: name images of known people with --data")
    mean, std = view.data.train.mean, view.data.train.std
    known, unknown = (replace(part, mean=mean, std=std) for part in (people.train, people.test))
    epochs = 4 * effort.epochs  # these data are few, so epochs are short
    shielded, clear = (
        infer_identity(sees, known, unknown, epochs, effort.seed)
        for sees in (view, view.without_shield())
    )
    shown = [image for image in sorted(shielded.taken_for) if image in clear.taken_for][:SHOWN]
    pictures = {"to be recognised": unknown.pixels(np.array(shown)).numpy()}
    for label, guess in {"taken for": shielded, "the same in the clear": clear}.items():
        faces = [_find_first_image(known, guess.taken_for[image]) for image in shown]
        pictures[label] = torch.cat(faces).numpy()
    metrics = {"success": shielded.success, f"success{CLEAR}": clear.success}
    return Outcome({**metrics, "chance": shielded.chance, "epochs": epochs}, pictures)


def _find_first_image(images: ImageSet, person: int) -> torch.Tensor:
    """Return the first image of a person, (1, C, H, W), or a black one if there is none."""
    first = np.flatnonzero(images.labels == person)[:1]
    return images.pixels(first) if len(first) else torch.zeros_like(images.pixels(slice(0, 1)))


def _attack_separation(view: View, effort: Effort, _: Splits | None) -> Outcome:
    generator = train_generator(view.without_shield(), effort.epochs, effort.seed)
    metrics: Metrics = {"chance": 0.5}
    pictures: dict[str, np.ndarray] = {}
    for suffix, known in {"": False, "_known_groups": True}.items():
        unmixed = unmix(view, effort.requests, known, effort.seed)
        rebuilt = reconstruct_unmixed(view, generator, unmixed)
        metrics |= {
            f"success{suffix}": unmixed.success,
            f"correlation{suffix}": float(unmixed.correlations.mean()),
            f"recognised{suffix}": unmixed.recognised,
            **{f"{name}{suffix}": value for name, value in rebuilt.similarity().items()},
        }
        if not known:
            shown = unmixed.images[:SHOWN]
            metrics[f"success{CLEAR}"] = mean(score_plain(view, unmixed.images))
            whole = padded_count(SHOWN, view.model.shield.config)
            mixed, _ = view.model.shield.protect(unmixed.true[:whole], np.random.default_rng(0))
            pictures = {
                "original": rebuilt.true[:SHOWN].numpy(),
                "true feature maps, mean": _render_maps(unmixed.true),
                "mixed, mean": _render_maps(mixed),
            }
        places = [int(np.flatnonzero(unmixed.images == image)[0]) for image in shown]
        pictures[f"recovered, groups {'' if known else 'un'}known"] = rebuilt.drawn[places].numpy()
    mixtures = score_mixtures(view, effort.requests, effort.seed)
    metrics |= {
        "success_of_the_mixtures": mixtures.success,
        "correlation_of_the_mixtures": float(mixtures.correlations.mean()),
    }
    return Outcome(metrics, pictures)


def _render_maps(maps: torch.Tensor) -> np.ndarray:
    """Render the first feature maps by their mean over channels."""
    return stretch(maps[:SHOWN].mean(1, keepdim=True).numpy(), 1e-9)


def _attack_reconstruction(view: View, effort: Effort, _: Splits | None) -> Outcome:
    metrics: Metrics = {"chance": 0.5}
    pictures: dict[str, np.ndarray] = {}
    for suffix, sees in {"": view, CLEAR: view.without_shield()}.items():
        generator = train_generator(sees, effort.epochs, effort.seed)
        rebuilt = reconstruct(sees, generator, effort.images, effort.seed)
        metrics |= {f"{name}{suffix}": value for name, value in rebuilt.similarity().items()}
        metrics[f"success{suffix}"] = mean(attribute_accuracies(view, rebuilt))
        where = " (in the clear)" if suffix else ""
        pictures[f"original{where}"] = rebuilt.true[:SHOWN].numpy()
        pictures[f"rebuilt{where}"] = rebuilt.drawn[:SHOWN].numpy()
    return Outcome(metrics, pictures)


ATTACKS: Mapping[str, Callable[[View, Effort, Splits | None], Outcome]] = {
    "attributes": _attack_attributes,
    "identity": _attack_identity,
    "separation": _attack_separation,
    "reconstruction": _attack_reconstruction,
}


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
