"""The exchanges of an epoch: who is asked for which batches, in which order, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from pudica.models.randomness import numpy_generator
from pudica.strategies.themis.config import ThemisConfig


@dataclass(frozen=True)
class Exchange:
    """One exchange: ``names`` are asked for ``count`` batches of an epoch, from ``step`` on."""

    epoch: int
    step: int
    count: int
    names: list[str]


def plan_epoch(
    settings: ThemisConfig, seed: int, case: str, epoch: int, names: Sequence[str], batches: int
) -> list[Exchange]:
    """Return the exchanges of an epoch of so many batches.

    Parameters
    ----------
    seed : int
        Of the run.
    names : sequence of str
        Of all participants, as listed.
    """
    trainers = select_trainers(settings, seed, case, epoch, names)
    # One after another, or all at once.
    one_by_one = settings.update == "sequential"
    groups = [[name] for name in trainers] if one_by_one else [trainers]
    visit = settings.steps_per_visit
    return [
        Exchange(epoch, step, min(visit, batches - step), group)
        for step in range(0, batches, visit)
        for group in groups
    ]


def select_trainers(
    settings: ThemisConfig, seed: int, case: str, epoch: int, names: Sequence[str]
) -> list[str]:
    """Return who trains the generator in an epoch, in order; arguments as of plan_epoch."""
    order, ordered = settings.order, list(names)
    if isinstance(order, list):
        ordered = [name for name in order if name in names]
    elif order == "random":
        randomness = numpy_generator(seed, "order", case, epoch)
        ordered = [names[i] for i in randomness.permutation(len(names))]
    elif order != "listed":
        ordered.sort(key=str.casefold, reverse=order == "reverse")
    trainers = [
        name
        for name in ordered
        if name not in settings.bystanders and settings.late.get(name, 0) <= epoch
    ]
    missing: set[str] = set()
    if settings.dropouts:
        randomness = numpy_generator(seed, "dropouts", case, epoch)
        count = max(0, min(settings.dropouts, len(trainers) - 1))
        missing = set(randomness.choice(sorted(trainers), count, replace=False))
    return [name for name in trainers if name not in missing]


def variant_of(settings: ThemisConfig, name: str) -> str:
    """Return which of a participant's models is asked: a cheater's is its cheating one."""
    return "cheating" if name in settings.cheaters else "honest"


def build_request(config: Mapping[str, Any], arrays: ArrayRecord) -> RecordDict:
    """Return the content of a request; requests share the arrays."""
    return RecordDict({"config": ConfigRecord(dict(config)), "arrays": arrays})


def build_train_requests(
    settings: ThemisConfig,
    exchange: Exchange,
    config: Mapping[str, Any],
    arrays: ArrayRecord,
    visitors: Mapping[str, int],
) -> dict[str, RecordDict]:
    """Return the requests of an exchange by name; equal ones are one object.

    Parameters
    ----------
    config : mapping
        What all requests have in common.
    visitors : mapping of str to int
        By which numbers participants draw noise of their own; without one, all draw the same.
    """
    common = {
        **config,
        "bound": settings.M,
        "epoch": exchange.epoch,
        "step": exchange.step,
        "count": exchange.count,
        "batch": settings.batch_size,
        "noise": settings.noise,
    }
    requests: dict[str, RecordDict] = {}
    shared: dict[tuple[str, str | None, int], RecordDict] = {}
    for name in exchange.names:
        variant, attack = variant_of(settings, name), settings.hostile.get(name)
        key = variant, attack, visitors.get(name, 0)
        if key not in shared:
            own = {"variant": variant, "visitor": key[2]} | ({"attack": attack} if attack else {})
            shared[key] = build_request({**common, **own}, arrays)
        requests[name] = shared[key]
    return requests
