"""A node's own classes and attributes beside those of a run, as ``pudica node check`` shows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pudica.clients.data import DataConfig, Splits, load
from pudica.clients.runtime.node import NodeConfig
from pudica.models.errors import RequestError, suggest_name
from pudica.models.naming import validate_labels

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS, MOST_NAMES = 40, 40


class Expected(NamedTuple):
    """The names that a run is expected to say; None where they are not known."""

    classes: tuple[str, ...] | None = None
    attributes: tuple[str, ...] | None = None

    @classmethod
    def read(cls, classes: str | None, attributes: str | None) -> Expected:
        """Return names written as ``a,b,c``, or in a file, one a line.

        Raises
        ------
        RequestError
            A name is empty, not printable or there twice; or a file can't be read.
        """
        return cls(_read_names("--classes", classes), _read_names("--attributes", attributes))


NOT_KNOWN = Expected()


class Table(NamedTuple):
    """A table to print."""

    title: str
    frame: pd.DataFrame


class Row(NamedTuple):
    """One name of a node, beside the one of the run that it is matched to."""

    own_number: str
    own_name: str
    images: int | None
    run_number: str
    run_name: str
    remark: str


def _read_names(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    try:
        if os.path.isfile(text):
            lines = Path(text).read_text(encoding="utf-8").splitlines()
            return tuple(validate_labels([line.strip() for line in lines if line.strip()]))
        return tuple(validate_labels([name.strip() for name in text.split(",")]))
    except (OSError, ValueError) as error:
        raise RequestError(f"{option}: {error}") from error


def describe_names(data: Splits) -> list[str]:
    """Return the names that an organiser's nodes are told, as their owners may check them."""
    lines = []
    for what, names in {"classes": data.class_names, "attributes": data.attributes}.items():
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        told = ",".join(names[:MOST_NAMES]) + more
        if names:
            lines.append(f"nodes are told these {what} (`pudica node check --{what}`): {told}")
    return lines


def load_own_data(config: NodeConfig, expected: Expected = NOT_KNOWN) -> Splits | None:
    """Return the node's own images as a run with these names reads them; None if it has none.

    Raises
    ------
    RequestError
        They can't be read, or do not match the names.
    """
    name = config.data.name
    if name is None:
        return None
    asked = DataConfig(name=name, classes=expected.classes, attribute_names=expected.attributes)
    return load(config.data.apply_to(asked), 0)


def describe_match(config: NodeConfig, expected: Expected) -> str:
    """Return how the names match; errors as of :func:`load_own_data`."""
    data = load_own_data(config, expected)
    if data is None:
        return "the organiser's; checked when the node joins"
    if expected == NOT_KNOWN:
        return "matched to the run's when the node joins; --classes NAMES shows how"
    classes, attributes = expected
    return "; ".join(
        f"all {what} are among the run's {len(names)}"
        for what, names in (("classes of its images", classes), ("asked attributes", attributes))
        if names
    )


def build_tables(config: NodeConfig, expected: Expected) -> list[Table]:
    """Return the node's own classes and attributes, each beside what the run calls it.

    Nothing is shown of data that can't be read, or are the organiser's.
    """
    try:
        data = load_own_data(config)
    except RequestError:
        return []
    if data is None:
        return []
    own = {theirs: ours for ours, theirs in config.data.rename.items()}
    classes = _match_classes(data, expected.classes)
    attributes = _match_attributes(data.attributes, expected.attributes)
    return [
        _tabulate(
            what, [row._replace(own_name=own.get(row.own_name, row.own_name)) for row in rows]
        )
        for what, rows in (("classes", list(classes)), ("attributes", list(attributes)))
        if rows
    ]


def _match_classes(data: Splits, wanted: Sequence[str] | None) -> Iterator[Row]:
    labels = np.concatenate([part.labels for part in (data.train, data.validation, data.test)])
    names, images = data.class_names, np.bincount(labels, minlength=data.num_classes)
    for place, (name, count) in enumerate(zip(names, images.tolist(), strict=True)):
        remark = ""
        if wanted is not None and name not in wanted:
            remark = f"refused.{suggest_name(name, wanted)}" if count else "no images here"
        yield _pair(place, name, count, wanted, remark)
    for name in wanted or ():
        if name not in names:
            yield Row("", "", 0, _number(name, wanted), name, "no images here")


def _match_attributes(names: Sequence[str], wanted: Sequence[str] | None) -> Iterator[Row]:
    for place, name in enumerate(names):
        is_asked = wanted is None or name in wanted
        yield _pair(place, name, None, wanted, "" if is_asked else "not asked, left out")
    for name in wanted or ():
        if name not in names:
            remark = f"refused without it.{suggest_name(name, names)}"
            yield Row("", "", None, _number(name, wanted), name, remark)


def _pair(
    place: int, name: str, images: int | None, wanted: Sequence[str] | None, remark: str
) -> Row:
    theirs = name if wanted is None or name in wanted else ""
    return Row(str(place), name, images, _number(name, wanted), theirs, remark)


def _number(name: str, names: Sequence[str] | None) -> str:
    return str(names.index(name)) if names is not None and name in names else ""


def _tabulate(what: str, rows: Sequence[Row]) -> Table:
    """Return a table of rows, those with remarks first, without columns that say nothing."""
    import pandas as pd

    ordered = sorted(rows, key=lambda row: not row.remark)[:MOST_ROWS]
    frame = pd.DataFrame(ordered, columns=list(Row._fields), dtype=object)
    empty = [
        name for name in frame if not frame[name].map(lambda v: v is not None and v != "").any()
    ]
    more = f" ({MOST_ROWS} of {len(rows)})" if len(rows) > MOST_ROWS else ""
    return Table(f"This node's {what}, by name{more}", frame.drop(columns=empty))
