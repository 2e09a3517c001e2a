"""One case of an experiment as the cloud sees it, whatever the system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from flwr.app import Array, RecordDict

from clients import protocol
from strategies.exchange import Exchanges
from strategies.recorder import Recorder

CLOUD = "cloud"


@dataclass(frozen=True)
class Member:
    """What a node says of itself: images of each part."""

    train: int
    validation: int
    test: int

    @classmethod
    def introduced(cls, words: Mapping[str, protocol.Scalar]) -> Self:
        """Return what a node said as it joined."""
        return cls(int(words["train"]), int(words["validation"]), int(words["test"]))


class CaseSession:
    """The nodes of one case: what is sent to them, and what is noted of it.

    Parameters
    ----------
    exchanges : Exchanges
    case : str
    """

    def __init__(self, exchanges: Exchanges, case: str) -> None:
        self.exchanges = exchanges
        self.recorder: Recorder = exchanges.recorder
        self.case = case

    @property
    def run(self) -> str:
        """The run's name, by which nodes know it."""
        return self.recorder.directory.name

    def request(self, config: Mapping[str, protocol.Scalar], **arrays: Array) -> RecordDict:
        """Return a request of this case."""
        return protocol.request({"run": self.run, "case": self.case, **config}, **arrays)

    def task(self, stage: str) -> str:
        """Return the name under which the recorder knows a stage of this case."""
        return f"{stage}/{self.case}"

    def log(
        self,
        stage: str,
        metric: str,
        value: float,
        node: str = CLOUD,
        round: int = 0,  # noqa: A002
        **tags: str | int,
    ) -> None:
        """Append a measurement of this case."""
        self.recorder.log(stage, metric, value, node=node, round=round, case=self.case, **tags)
