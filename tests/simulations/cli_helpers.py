"""Settings that make a run a matter of seconds, as they are typed."""

from __future__ import annotations

TINY = {
    "data.limit": "160",
    "participants": "[{model: softmax}, {model: mlp}]",
    "training.epochs": "1",
    "themis.epochs": "1",
    "themis.release.draws": "1",
    "themis.examiner": "null",
}


def as_options(settings: dict[str, str]) -> list[str]:
    """Return settings as they are typed on the command line."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
