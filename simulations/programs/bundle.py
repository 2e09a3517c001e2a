"""The app bundle (FAB) that Flower distributes to the nodes of a run.

It names the apps but contains no code: each node runs its installed Pudica and reports the version
when it joins (:func:`pudica.clients.protocol.code_fingerprint`).
"""

from __future__ import annotations

from pathlib import Path

import tomli_w

COMPONENTS = {"serverapp": "pudica.strategies.app:app", "clientapp": "pudica.clients.app:app"}


def write_bundle(
    app: Path, config: dict[str, str], components: dict[str, str] = COMPONENTS
) -> None:
    """Write the folder of a Flower app.

    ``config`` is its default configuration, including the experiment. It is not passed as
    ``--run-config``, which Flower splits at quotation marks.
    """
    app.mkdir(parents=True, exist_ok=True)
    pyproject = {
        "project": {"name": "pudica", "version": "0.0.0", "description": "One run of Pudica"},
        "tool": {
            "flwr": {"app": {"publisher": "pudica", "components": components, "config": config}}
        },
    }
    (app / "pyproject.toml").write_text(tomli_w.dumps(pyproject), encoding="utf-8")
