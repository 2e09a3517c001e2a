"""What leaves the devices, listed for whoever wants to know what that gives away."""

from __future__ import annotations

import json
from typing import Any

from models.files import write_atomically
from strategies.split.model import guarded
from strategies.split.session import Session

FILE = "releases.json"
SHUFFLED = "every example once an epoch, in random order: no amplification is claimed"
ONCE = "every example once"


def listed(session: Session, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return every kind of release of one case.

    Parameters
    ----------
    shape : tuple of int
        Of one example's activation.

    Returns
    -------
    list of dict
        ``case, node, what, records, shape, batch, count, shield, mode, trained_front, public,
        sampling, randomness``; a shield of None is a release in the clear.
    """
    kinds = [*_training(session, shape), *_test(session, shape)]
    return [
        {"case": session.case, "node": node, **kind} for node in session.devices for kind in kinds
    ]


def _training(session: Session, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    settings, count = session.settings, session.settings.releases
    sampling = ONCE if settings.release == "once" else SHUFFLED
    common = {"records": "training", "count": count, "sampling": sampling}
    clear = common | {"batch": settings.batch_size, "shape": [], "randomness": "none"}
    found = [
        common | _shielded(session, shape, "smashed data", "train"),
        clear | _clear("labels", public=True),
    ]
    learnt = {"average": "front gradients", "handoff": "front weights"}.get(settings.front)
    return [*found, clear | _clear(learnt)] if learnt else found


def _test(session: Session, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    settings = session.settings
    common = {"records": "test", "count": 1, "sampling": ONCE}
    clear = common | {"batch": settings.batch_size, "randomness": "none"}
    found = [clear | {"shape": []} | _clear("number of right answers", public=True)]
    if "cloud" in settings.classify:
        found.append(common | _shielded(session, shape, "test features", "eval"))
        if settings.plain_to_cloud:
            found.append(clear | {"shape": list(shape)} | _clear("test features without noise"))
    return found


def _shielded(session: Session, shape: tuple[int, ...], what: str, mode: str) -> dict[str, Any]:
    settings = session.settings
    shield = guarded(settings)
    plain = shield.name == "none"
    return {
        "what": what,
        "shape": list(shape),
        "batch": settings.batch_size,
        "shield": None if plain else json.loads(shield.model_dump_json()),
        # A frozen front's shield normalises by running statistics, which do not move either.
        "mode": mode,
        "trained_front": settings.front != "frozen" and settings.cut != "input",
        "public": False,
        "randomness": "none" if plain else settings.noise,
    }


def _clear(what: str | None, public: bool = False) -> dict[str, Any]:
    return {
        "what": what,
        "shield": None,
        "mode": "train",
        "trained_front": False,
        "public": public,
    }


def write(session: Session, shape: tuple[int, ...]) -> None:
    """Add a case's releases to ``releases.json``."""
    recorder = session.recorder
    path = recorder.artefact(FILE)
    known = json.loads(path.read_text()) if path.exists() else []
    others = [release for release in known if release["case"] != session.case]
    text = json.dumps([*others, *listed(session, shape)], indent=1)
    write_atomically(path, text.encode())
