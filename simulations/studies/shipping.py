"""The frontiers that come with Pudica."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "frontiers"


def shipped_frontiers() -> dict[str, Path]:
    """Return the files of frontiers that come with Pudica, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
