"""What leaves its owner in a run, kept so that anybody can see what it gives away."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, NonNegativeInt, PositiveInt

from pudica.clients.shields import Guarantee, Mechanism, Shield, build, parse_config
from pudica.clients.shields.base import FLOATING_POINT_NOISE, NO_NOISE
from pudica.clients.shields.dp_sgd import RELATION, DpSgdConfig
from pudica.models.files import write_atomically
from pudica.strategies.core.recorder import Recorder

FILE = "releases.json"
DP_SGD = "dp-sgd"
Records = Literal["training", "test", "validation", "served"]
IN_THE_CLEAR = Guarantee("record", None, reasons=("released in the clear",))
NO_MECHANISM = Guarantee(
    "record", None, reasons=("its shield is no Mechanism, and can't be accounted for",)
)


@dataclass(frozen=True)
class Release:
    """One kind of tensor that leaves a node.

    Attributes
    ----------
    case, node : str
    what : str
        For people: ``"smashed data"``.
    records : {"training", "test", "validation", "served"}
        Whose it is of; served: an edge asked a cloud about it.
    shape : tuple of int
        Of one example.
    batch : int
        The most examples that are protected together.
    count : int
        How often one record is released at most.
    shield : dict or None
        The shield's settings with its name; None: it leaves in the clear.
    mode : {"train", "eval"}
        The shield's.
    trained_front : bool
        The front that computes it is trained on the private data without a guarantee.
    public : bool
        It is declared to be public, as labels are.
    sampling : str
        How examples are drawn, for people.
    randomness : {"secret", "seeded", "none"}
        Where the noise comes from.
    statistics : bool
        What it is computed from is normalised by statistics of training records.
    integers : bool
        Whole numbers are released, if the shield can. Of runs before it could, it is False.
    dp : DpSgdConfig or None
        DP-SGD with these settings, whose ε is of all releases together.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    case: str
    node: str
    what: str
    records: Records
    shape: tuple[PositiveInt, ...]
    batch: PositiveInt
    count: NonNegativeInt
    shield: dict[str, Any] | None
    mode: Literal["train", "eval"]
    trained_front: bool
    public: bool
    sampling: str
    randomness: Literal["secret", "seeded", "none"]
    statistics: bool = False
    integers: bool = False
    dp: DpSgdConfig | None = None

    @property
    def mechanism(self) -> str:
        """The name of what protects it."""
        if self.dp:
            return DP_SGD
        return self.shield["name"] if self.shield else "none"

    @property
    def kind(self) -> str:
        """What two nodes' releases have in common: all but the node and the count."""
        values = dataclasses.asdict(self)
        kept = {key: v for key, v in values.items() if key not in ("node", "count")}
        return json.dumps(kept, default=DpSgdConfig.model_dump)

    @cached_property
    def protection(self) -> Shield | None:
        """The shield, in its mode; None in the clear.

        Raises
        ------
        ValueError
            If there is no such shield, or it does not fit the shape.
        """
        if self.shield is None or self.shield.get("name") == "none":
            return None
        return build(parse_config(self.shield), self.shape, self.batch).train(self.mode == "train")

    @property
    def claimed(self) -> Guarantee | None:
        """What the shield's paper calibrates to, for one release; DP-SGD: for all together."""
        if self.dp:
            return Guarantee("record", self.dp.epsilon, self.dp.delta, relation=RELATION)
        return self.protection.claimed() if self.protection else None

    @property
    def held(self) -> Guarantee:
        """What is true of a record in one release, of a front that tells nothing."""
        if self.dp:
            ideal = f"in real numbers: {self.claimed}, added or removed, in all releases together"
            return Guarantee("record", None, reasons=(FLOATING_POINT_NOISE, ideal))
        if self.protection is None:
            return IN_THE_CLEAR
        if isinstance(self.protection, Mechanism) and self.randomness == "none":
            return NO_NOISE
        if self.protection.grid and not self.integers:
            return Guarantee("record", None, reasons=(FLOATING_POINT_NOISE,))
        held = self.protection.guarantee()
        if held.epsilon is not None and not isinstance(self.protection, Mechanism):
            return NO_MECHANISM
        return held


def in_the_clear(case: str, shape: tuple[int, ...], batch: int, **values: Any) -> Release:
    """Return a release of training records without any shield, of no node yet.

    Parameters
    ----------
    **values
        What differs, by the names of :class:`Release`.
    """
    release = Release(
        case=case,
        node="",
        what="",
        records="training",
        shape=shape,
        batch=batch,
        count=1,
        shield=None,
        mode="train",
        trained_front=False,
        public=False,
        sampling="",
        randomness="none",
    )
    return dataclasses.replace(release, **values)


def of_nodes(kinds: Iterable[Release], nodes: Iterable[str]) -> list[Release]:
    """Return every kind of release, of every node."""
    every = list(kinds)
    return [dataclasses.replace(kind, node=node) for node in nodes for kind in every]


def keep(recorder: Recorder, releases: Iterable[Release]) -> None:
    """Put releases into the run's ledger, in place of what stood there of their case and node.

    Nodes that are away now stay in it: what they released before is out.
    """
    path = recorder.artefact(FILE)
    new = [dataclasses.asdict(release) for release in releases]
    written = {(entry["case"], entry["node"]) for entry in new}
    known = json.loads(path.read_text()) if path.exists() else []
    others = [entry for entry in known if (entry["case"], entry["node"]) not in written]
    text = json.dumps([*others, *new], indent=1, default=DpSgdConfig.model_dump)
    write_atomically(path, text.encode())
