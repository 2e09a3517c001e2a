"""The bundle of a run: what Flower carries to its nodes.

It names the apps and carries no code: each node runs the Pudica that is installed there, and says
which at join (:func:`pudica.clients.protocol.code_fingerprint`).
"""

from __future__ import annotations

from pathlib import Path

import tomli_w

COMPONENTS = {"serverapp": "pudica.strategies.app:app", "clientapp": "pudica.clients.app:app"}


def stage(app: Path, config: dict[str, str], components: dict[str, str] = COMPONENTS) -> None:
    """Write the app's folder.

    Parameters
    ----------
    app : Path
        Made if it is not there.
    config : dict
        Its default configuration, the experiment included. Not a ``--run-config``, which Flower
        splits at quotation marks.
    components : dict
        The ServerApp and the ClientApp.
    """
    app.mkdir(parents=True, exist_ok=True)
    pyproject = {
        "project": {"name": "pudica", "version": "0.0.0", "description": "One run of Pudica"},
        "tool": {
            "flwr": {"app": {"publisher": "pudica", "components": components, "config": config}}
        },
    }
    (app / "pyproject.toml").write_text(tomli_w.dumps(pyproject), encoding="utf-8")
