"""What spares attacks time."""

from __future__ import annotations

from functools import partial

import pytest
import yaml


@pytest.fixture(autouse=True)
def _read_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse in C: a device reads its ``node.yaml`` several times for each message."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    monkeypatch.setattr(yaml, "safe_load", partial(yaml.load, Loader=loader))
