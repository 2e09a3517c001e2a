"""One case of an experiment as the cloud sees it, whatever the system."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, get_args

from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.clients.shields.disguises import Span
from pudica.clients.shields.disguises.steps import Kind
from pudica.models.errors import RequestError
from pudica.models.printable import quote
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.joining import base_assignments
from pudica.strategies.core.recorder import Recorder

CLOUD = "cloud"
MOST_IMAGES, MOST_CLASSES = 10**9, 10**6
MOST_VALUES = 10**8
"""In one image."""
MOST_VALUE = 2**62
"""Of a disguised image; differences of such values still fit into 64 bits."""
KEY = re.compile(r"([0-9a-f]{16})?")
SHAPE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})x([0-9]{1,9})")
# On these engines a node's process lives as long as the run; elsewhere each message may reach
# a fresh one, and what a node has to remember must be in its vault, or come with the message.
LASTING = ("inprocess", "ray", "benchmark")

Words = Mapping[str, protocol.Scalar]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Member:
    """What a node says of its data.

    Attributes
    ----------
    shape, classes : tuple of int, int
        Of an image; how many classes there are.
    key : str
        The fingerprint of the key that disguises the images, empty if they are plain.
    span : Span
        Where values of images lie.
    train, validation, test : int
        Images of each part.
    reports : bool
        Whether it says how often models are right on its images.
    """

    shape: Shape
    classes: int
    key: str
    span: Span
    train: int
    validation: int
    test: int
    reports: bool

    @classmethod
    def introduced(cls, words: Words) -> Self:
        """Return what a node said as it joined.

        Raises
        ------
        KeyError, ValueError
            If it makes no sense.
        """
        parts = ("train", "validation", "test")
        counts = {part: protocol.whole(words, part, 0, MOST_IMAGES) for part in parts}
        classes = protocol.whole(words, "classes", 2, MOST_CLASSES)
        shape, key = (protocol.text(words, name) for name in ("shape", "key"))
        if not KEY.fullmatch(key):
            raise ValueError(f"{quote(key)} is no fingerprint of a key")
        reports = bool(protocol.whole({"reports": 1, **words}, "reports", 0, 1))
        return cls(_shape(shape), classes, key, _span(words), **counts, reports=reports)


def _shape(text: str) -> Shape:
    """Return the shape of an image, written as 3x32x32."""
    lengths = SHAPE.fullmatch(text)
    if lengths is None:
        raise ValueError(f"images of shape '{text}'")
    channels, height, width = map(int, lengths.groups())
    if not 1 <= channels * height * width <= MOST_VALUES:
        raise ValueError(f"images of shape '{text}'")
    return channels, height, width


def _span(words: Words) -> Span:
    """Return where values of images lie; those of plain images if nothing is said."""
    said = {**asdict(Span()), **words}
    kind = protocol.text(said, "kind")
    low, high = (protocol.whole(said, end, -MOST_VALUE, MOST_VALUE) for end in ("low", "high"))
    if kind not in get_args(Kind) or low >= high:
        raise ValueError(f"images of '{kind}' from {low} to {high}")
    return Span(low, high, kind)  # type: ignore[arg-type]


Images = tuple[Shape, int, Span]
"""Shape of an image, number of classes, and where values lie: the same for all of a case."""


def _described(said: Images) -> str:
    shape, classes, span = said
    sizes = "x".join(map(str, shape))
    return f"images of {sizes} in {classes} classes, {span.kind} from {span.low} to {span.high}"


class CaseSession:
    """The nodes of one case: what is sent to them, and what is noted of it.

    Parameters
    ----------
    exchanges : Exchanges
    case : str

    Attributes
    ----------
    fresh : bool
        Whether each message may reach a new process of its node.
    """

    def __init__(self, cohort: Cohort, case: str) -> None:
        self.cohort = cohort
        self.recorder: Recorder = cohort.recorder
        self.case = case
        self.fresh = self.recorder.run["engine"] not in LASTING

    def met(self, joined: dict[str, Member], suffix: str = "") -> None:
        """Note the nodes' keys; leave out who comes back with another.

        Parameters
        ----------
        suffix : str
            Of the names that keys are noted under.

        Raises
        ------
        RequestError
            All do.
        """
        others: dict[str, RequestError] = {}
        for name, member in joined.items():
            try:
                self.recorder.check_key(f"{name}{suffix}", member.key)
            except RequestError as error:
                others[name] = error
        if others and len(others) == len(joined):
            raise next(iter(others.values()))
        for name, problem in others.items():
            self.cohort.leave_out(name, str(problem))
            del joined[name]

    def settled(self, joined: dict[str, Member]) -> Images:
        """Return what kind of images most nodes hold; leave out those that hold others."""
        said = {name: (m.shape, m.classes, m.span) for name, m in joined.items()}
        wanted, _ = Counter(said.values()).most_common(1)[0]
        for name, own in said.items():
            if own != wanted:
                self.cohort.leave_out(
                    name,
                    f"it holds {_described(own)}, most {_described(wanted)}; give all the same "
                    "data set, and the same disguise",
                )
                del joined[name]
        return wanted

    def base_assignments(self, experiment: Experiment) -> dict[str, dict[str, Any]]:
        """Return by name what the assignment of each node says, whatever the system."""
        return base_assignments(experiment, self.run, self.cohort.registry is not None)

    @property
    def run(self) -> str:
        """The run's name, by which nodes know it."""
        return self.recorder.directory.name

    def request(self, config: Words, **arrays: Array) -> RecordDict:
        """Return a request of this case."""
        return protocol.request({"run": self.run, "case": self.case, **config}, **arrays)

    def task(self, stage: str) -> str:
        """Return the name under which the recorder knows a stage of this case."""
        return f"{stage}/{self.case}"

    def log(
        self,
        stage: str,
        metric: str,
        value: float,
        node: str = CLOUD,
        round: int = 0,  # noqa: A002
        **tags: str | int,
    ) -> None:
        """Append a measurement of this case."""
        self.recorder.log(stage, metric, value, node=node, round=round, case=self.case, **tags)
