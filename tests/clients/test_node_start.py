"""What a node imports, every worker of a simulation and every node that starts waits for."""

from __future__ import annotations

import subprocess
import sys

SLOW = (
    "torchvision",
    "torchmetrics",
    "scipy",
    "sklearn",
    "matplotlib",
    "pandas",
    "ray",
    "datasets",
)
SAY = f"""
import sys
import pudica.clients.app
from pudica import models
models.build("cnn-small", num_classes=10, channels=1, image_size=8)
print(*[name for name in {SLOW!r} if name in sys.modules])
"""


def test_a_node_imports_nothing_slow_that_it_does_not_need() -> None:
    done = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
