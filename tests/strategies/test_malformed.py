"""Thousands of malformed replies, each tried where a run has the genuine one: nothing comes of it.

The run goes on with the genuine reply, and must end as if the others had never come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from hostile_runs import EXPERIMENTS, measured
from malformed import Change, changed, drawn, ways

from pudica.clients import protocol
from pudica.strategies.core.cohort import Cohort

Measured = Callable[[str], list[str]]

EACH = 40
"""Malformed replies that are drawn for a genuine one."""

SPLIT, FACEMIX = EXPERIMENTS["split"], EXPERIMENTS["facemix"]
RUNS = {
    **EXPERIMENTS,
    "split, once": [
        *SPLIT,
        "split.cases={once: {front: frozen, release: once, classify: [cloud]}}",
    ],
    "split, adam": [
        *SPLIT,
        "split.epochs=1",
        "split.cases={handoff: {front: handoff, front_optimizer: {name: adam}, wire: float16}}",
    ],
    "dlmt, central": [
        *EXPERIMENTS["dlmt"],
        "dlmt.training.epochs=1",
        "dlmt.cases={central: {shield: MAT(300)}}",
    ],
    "facemix, split": [
        *FACEMIX,
        "data.normalize=none",
        "facemix.cases={split: {train: split}}",
    ],
}
# The kinds of reply that each run has, and how many malformed ones are tried at least.
COMMON = {protocol.HELLO, protocol.JOIN}
SERVING = {protocol.ADOPT, protocol.INFER, protocol.COUNTS}
KINDS = {
    "themis": {
        *(protocol.LOCAL, protocol.GRADIENT, protocol.VISIT),
        *(protocol.NOISY, protocol.DENSITY, protocol.PREDICT),
    },
    "split": {
        *(protocol.SMASH, protocol.FRONT_GRADIENT, protocol.FRONT),
        *(protocol.WHOLE, protocol.FEATURES),
    },
    "dlmt": {protocol.STATISTICS, protocol.ROUND, protocol.RIGHT, protocol.AUDIT},
    "facemix": SERVING,
    "split, once": {protocol.SMASH, protocol.WHOLE, protocol.FEATURES},
    "split, adam": {protocol.SMASH, protocol.FRONT, protocol.WHOLE, protocol.FEATURES},
    "dlmt, central": {protocol.STATISTICS, protocol.IMAGES, protocol.RIGHT, protocol.AUDIT},
    "facemix, split": {*SERVING, protocol.MIXTURES, protocol.OUTPUTS, protocol.ENDS},
}
LEAST = 500


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Return what a run measures that nobody disturbs; each once."""
    known: dict[str, list[str]] = {}

    def found(name: str) -> list[str]:
        if name not in known:
            known[name] = measured(RUNS[name], tmp_path_factory.mktemp("undisturbed") / "run")
        return known[name]

    return found


class Tried:
    """Tries malformed copies of every reply on whoever reads it, before it is read.

    Parameters
    ----------
    copies : callable
        Of a kind and a reply: what is malformed in each copy, and how it becomes so.
    """

    def __init__(self, copies: Callable[[str, RecordDict], Iterable[tuple[str, Change]]]) -> None:
        self.copies = copies
        self.count: Counter[str] = Counter()

    def __call__(self, cohort: Cohort, kind: str, reply: Message, read: Callable) -> Any:
        """Stand in for ``Cohort._read_reply``."""
        name = cohort.grid.name_of(reply.metadata.src_node_id)
        for what, change in self.copies(kind, reply.content):
            self.refuse(kind, what, partial(read, name, changed(reply.content, change)))
        return READ_REPLY(cohort, kind, reply, read)

    def refuse(self, kind: str, what: str, read: Callable[[], object]) -> None:
        """See that a reply makes no sense to who reads it, and stops nothing."""
        self.count[kind] += 1
        try:
            said = read()
        except (KeyError, TypeError, ValueError):
            return
        except Exception as error:
            raise AssertionError(f"{kind} with {what} raises {error!r}") from error
        raise AssertionError(f"{kind} with {what} is taken for {said!r:.300}")


READ_REPLY = Cohort._read_reply


def check(name: str, tried: Tried, place: Path, undisturbed: Measured, least: int) -> None:
    """Run an experiment in which malformed replies are tried; see that nothing comes of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cohort, "_read_reply", lambda *arguments: tried(*arguments))
        rows = measured(RUNS[name], place)
    assert rows == undisturbed(name)
    assert set(tried.count) == COMMON | KINDS[name]
    assert tried.count.total() >= least
    print(f"{name}: {tried.count.total()} malformed replies, {dict(tried.count)}")


@pytest.mark.parametrize("name", RUNS)
def test_malformed_replies_of_all_kinds_change_nothing(
    name: str, undisturbed: Measured, tmp_path: Path
) -> None:
    check(name, Tried(ways), tmp_path / "run", undisturbed, LEAST)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_malformed_replies_that_are_drawn_change_nothing(
    name: str, undisturbed: Measured, tmp_path: Path
) -> None:
    draw = Random(name)

    def copies(kind: str, content: RecordDict) -> Iterator[tuple[str, Change]]:
        return (drawn(draw, kind, content) for _ in range(EACH))

    check(name, Tried(copies), tmp_path / "run", undisturbed, LEAST // 5)
