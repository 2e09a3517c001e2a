"""What measurements run on: workers of Ray, and processes of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.clientapp import ClientApp

from pudica.simulations.engines.flower import temporary_flower_home
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

    The Ray that Flower starts there is its own, too: left to itself, Flower would join any that it
    finds, and wait for ever for one that is dead.

    Raises
    ------
    RuntimeError
        If it fails; the message is the last line that it wrote on standard error.
    """
    with temporary_flower_home() as home:
        errors, output = home.path / "errors", home.path / "output"
        code = home.start(errors, "-m", module, *map(str, arguments), output=output).wait()
        if code:
            lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(f"python -m {module}: {(lines or [f'exit code {code}'])[-1]}")
        return json.loads(output.read_text(encoding="utf-8").splitlines()[-1])
