"""What leaves the devices in one case of split learning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from strategies.releases import Records, Release
from strategies.split.model import guarded
from strategies.split.session import Session

SHUFFLED = "every example once an epoch, in random order: no amplification is claimed"
ONCE = "every example once"
BY_THE_WAY = {"average": "front gradients", "handoff": "front weights"}
"""What else of a front that learns is sent, by how the fronts are kept equal."""


def releases(session: Session, shape: tuple[int, ...]) -> Iterator[Release]:
    """Yield every kind of release of every device.

    Parameters
    ----------
    shape : tuple of int
        Of one example's activation.
    """
    for node in session.devices:
        ledger = _Ledger(session, shape, node)
        yield from ledger.of_training()
        yield from ledger.of_test()


class _Ledger:
    """One device's releases."""

    def __init__(self, session: Session, shape: tuple[int, ...], node: str) -> None:
        self.session = session
        self.settings = session.settings
        self.shape = shape
        self.node = node
        self.trained = self.settings.front != "frozen" and self.settings.cut != "input"

    def of_training(self) -> Iterator[Release]:
        count = self.settings.releases
        yield self._shielded("smashed data", "training", count, "train")
        yield self._clear("labels", "training", count, public=True)
        if self.settings.front in BY_THE_WAY and self.trained:
            yield self._clear(BY_THE_WAY[self.settings.front], "training", count)

    def of_test(self) -> Iterator[Release]:
        answers = "number of right answers"
        yield self._clear(answers, "test", len(self.settings.classify), public=True)
        if every := self.settings.validate_every:
            yield self._clear(answers, "validation", -(-self.settings.epochs // every), public=True)
        if "cloud" in self.settings.classify:
            yield self._shielded("test features", "test", 1, "eval")
            if self.settings.plain_to_cloud:
                yield self._clear("test features without noise", "test", 1)

    def _shielded(
        self,
        what: str,
        records: Records,
        count: int,
        mode: Literal["train", "eval"],
    ) -> Release:
        shield = guarded(self.settings)
        settings: dict[str, Any] = json.loads(shield.model_dump_json())
        noiseless = settings.get("epsilon") is None
        return Release(
            case=self.session.case,
            node=self.node,
            what=what,
            records=records,
            shape=self.shape,
            batch=self.settings.batch_size,
            count=count,
            shield=None if shield.name == "none" else settings,
            mode=mode,
            trained_front=self.trained,
            public=False,
            sampling=ONCE if count == 1 else SHUFFLED,
            randomness="none" if noiseless else self.settings.noise,
        )

    def _clear(self, what: str, records: Records, count: int, public: bool = False) -> Release:
        return Release(
            case=self.session.case,
            node=self.node,
            what=what,
            records=records,
            shape=(),
            batch=self.settings.batch_size,
            count=count,
            shield=None,
            mode="train",
            trained_front=False,
            public=public,
            sampling="",
            randomness="none",
        )
