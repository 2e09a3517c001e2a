"""What a strategy returns, and what its record says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import yaml
from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from pudica.strategies.core.loggers import LoggerName

KINDS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


@dataclass
class RecordedResult(Result):
    """Flower's Result, and every measurement of every node.

    Attributes
    ----------
    rows : list of dict
        As lines of ``metrics.jsonl``: stage, round, node, metric, value, and tags.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)

    def note(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return what there is of each round, as JSON."""
        return {
            kind: {str(number): dict(metrics) for number, metrics in getattr(self, kind).items()}
            for kind in KINDS
        }

    def restore(self, note: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Put back what :meth:`note` returned."""
        for kind in KINDS:
            rounds = {int(number): MetricRecord(dict(m)) for number, m in note[kind].items()}
            setattr(self, kind, rounds)

    def frame(self) -> pd.DataFrame:
        """Return the measurements, one row each."""
        return pd.DataFrame(self.rows)


@dataclass(frozen=True)
class RunDescription:
    """What a record says of a strategy that somebody's own app runs.

    Attributes
    ----------
    system, name : str
    seed : int
    settings : dict
        Of the strategy; a record is resumed with the same only.
    log : tuple of str
        The loggers that are given the measurements.
    """

    system: str
    name: str
    seed: int
    settings: Mapping[str, Any]
    log: tuple[LoggerName, ...] = ()

    def names(self) -> list[str]:
        """Return no names: nodes say theirs when they join."""
        return []

    def to_yaml(self) -> str:
        """Return the settings as ``experiment.yaml`` holds them."""
        content = {"name": self.name, "system": self.system, "seed": self.seed}
        settings = {self.system: dict(self.settings)}
        return yaml.safe_dump(content | settings, sort_keys=False, allow_unicode=True)
