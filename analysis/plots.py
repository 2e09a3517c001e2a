"""The figures of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from pudica.analysis import dlmt_figures, facemix_figures, split_figures, themis_figures
from pudica.analysis.drawing import own_look, save
from pudica.analysis.runs import Run, open_run

FIGURES: dict[str, Callable[[Run], Iterator[tuple[str, Figure]]]] = {
    "dlmt": dlmt_figures.figures,
    "facemix": facemix_figures.figures,
    "split": split_figures.figures,
    "themis": themis_figures.figures,
}


def plot(run: str | Path) -> list[Path]:
    """Draw all figures of a run that it has the measurements for.

    Parameters
    ----------
    run : str or Path
        A run directory; the run may still be going on.

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
    one = open_run(run)
    folder = one.directory / "plots"
    draw = FIGURES.get(one.info.get("system", ""))
    with own_look():
        found = draw(one) if draw else ()
        return [save(figure, folder / f"{name}.png") for name, figure in found]
