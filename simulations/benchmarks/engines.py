"""What measurements run on: workers of Ray, and processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.clientapp import ClientApp

from pudica.simulations.engines.ray import RayGrid


@contextmanager
def start_ray_grid(
    app: ClientApp, nodes: int, config: Mapping[str, str], num_cpus: float = 1.0
) -> Iterator[RayGrid]:
    """Start a grid of two workers, and stop them afterwards; Ray must be connected."""
    grid = RayGrid(app, nodes, config, workers=2, num_cpus=num_cpus)
    try:
        yield grid
    finally:
        grid.stop()


def run_module(module: str, *arguments: object) -> Any:
    """Run a module in a process of its own, and return the JSON in the last line it prints.

    Raises
    ------
    RuntimeError
        If it fails; the message is the last line that it wrote on standard error.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"python -m {module}: {reason[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
