"""Frames as a person reads them: side by side, without what every row repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from pudica.analysis.runs import Run

RUN = ["run", "experiment"]


def drop_run_names(found: dict[str, pd.DataFrame], runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Leave out of a single run's tables its name, which would be the same in every row."""
    if len(runs) > 1:
        return found
    return {title: frame.drop(columns=RUN, errors="ignore") for title, frame in found.items()}


def join_side_by_side(frames: Mapping[str, pd.DataFrame], key: str, named: bool) -> pd.DataFrame:
    """Return frames of several runs as one, with a column per figure and run.

    Parameters
    ----------
    frames : mapping of str to DataFrame
        By run.
    key : str
        The column whose values name the rows.
    named : bool
        Whether columns say whose they are.
    """
    if not frames:
        return pd.DataFrame()
    if not named:
        return next(iter(frames.values()))
    keyed = {run: _keep_whole(frame.set_index(key)) for run, frame in frames.items()}
    rows = list(dict.fromkeys(row for frame in keyed.values() for row in frame.index))
    figures = dict.fromkeys(str(figure) for frame in keyed.values() for figure in frame)
    wide = {
        f"{figure} ({run})": frame[figure]
        for figure in figures
        for run, frame in keyed.items()
        if figure in frame
    }
    return pd.DataFrame(wide, index=rows).rename_axis(index=key).reset_index()


def _keep_whole(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep whole numbers whole where a run lacks a row that another has."""
    return frame.astype(dict.fromkeys(frame.select_dtypes("int64"), "Int64"))


def make_printable(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out empty columns, and turn missing whole numbers into None."""
    frame = frame.dropna(axis="columns", how="all")
    for name in frame.select_dtypes("Int64"):
        if frame[name].isna().any():
            frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    return frame
