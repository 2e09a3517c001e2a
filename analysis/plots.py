"""The figures of a run."""

from __future__ import annotations

from pathlib import Path

from pudica.analysis.drawing import plot_style, save
from pudica.analysis.runs import open_run
from pudica.clients.runtime.systems import systems


def plot(run: str | Path) -> list[Path]:
    """Draw all figures of a run for which there are measurements.

    Parameters
    ----------
    run : str or Path
        A run directory; the run may be in progress.

    Returns
    -------
    list of Path
        ``RUN/plots/*.png``. For each case of a THEMIS competition: ``CASE-images.png``
        (Figure 3 of the paper), ``CASE-accuracy.png`` (Figure 4),
        ``CASE-plain-against-noisy.png`` (Figure 5) and ``CASE-sigma-mu.png``; for several
        cases together ``ranks.png``. Of split learning: ``training.png`` (Figures 5 to 7 of
        paper 004) and ``trade-off.png`` (Figures 3 and 4 of paper 002). Of DLMT:
        ``training.png``, ``measures.png`` (Table III) and ``seen.png``. Of FaceMix:
        ``training.png``, ``trade-off.png`` (Figure 4 of paper 003) and ``attributes.png``.

    Raises
    ------
    RequestError
        As of :func:`pudica.analysis.load`.
    """
    opened = open_run(run)
    folder = opened.directory / "plots"
    system = systems().get(opened.info.get("system", ""))
    draw = system.part("figures") if system else None
    with plot_style():
        found = draw(opened) if draw else ()
        return [save(figure, folder / f"{name}.png") for name, figure in found]
