"""What leaves the owners in one case of DLMT."""

from __future__ import annotations

import dataclasses

from strategies.dlmt.session import Session
from strategies.releases import Release, in_the_clear


def releases(session: Session, weights: int) -> list[Release]:
    """Return every kind of release of every owner.

    Parameters
    ----------
    weights : int
        Of the model.
    """
    settings = session.settings
    clear = in_the_clear(session.case, session.image, 1, what="numbers of examples", public=True)
    rounds = settings.rounds
    if settings.train == "central":
        disguised = f"images disguised by {settings.shield}" if settings.shield else "images"
        kinds = [
            dataclasses.replace(clear, what=disguised, public=False),
            dataclasses.replace(clear, what="labels"),
        ]
    else:
        what = "models trained on " + ("disguised images" if settings.shield else "images")
        kinds = [
            dataclasses.replace(clear, what=what, shape=(weights,), count=rounds, public=False)
        ]
    kinds += [
        clear,
        dataclasses.replace(clear, what="statistics of channels", public=False),
    ]
    for part in ("validation", "test"):
        if any(getattr(member, part) for member in session.owners.values()):
            times = sum(settings.evaluates(done + 1) for done in range(rounds))
            answers = dataclasses.replace(clear, what="number of right answers", count=times)
            kinds.append(dataclasses.replace(answers, records=part))  # type: ignore[arg-type]
    return [dataclasses.replace(kind, node=node) for node in session.owners for kind in kinds]
