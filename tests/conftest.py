"""What all tests share: one cache of decoded data, one thread, no telemetry."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Tests run side by side: more threads of what they start are only in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _decoded_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep decoded data in one place for all workers, never in the user's own cache."""
    before = os.environ.get("PUDICA_CACHE")
    if before is None:
        place = tmp_path_factory.getbasetemp()
        shared = place.parent if os.environ.get("PYTEST_XDIST_WORKER") else place
        os.environ["PUDICA_CACHE"] = str(shared / "pudica-cache")
    yield
    if before is None:
        del os.environ["PUDICA_CACHE"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def real_data() -> Path:
    """Return the folder of real data sets, or skip."""
    place = os.environ.get("PUDICA_DATA")
    if not place or not Path(place).is_dir():
        pytest.skip("PUDICA_DATA is not set: no real data here")
    return Path(place)
