"""Inference: edges ask, and the cloud answers several of them from one batch.

A request's answer and the next request share a message. Requests wait a moment for those of other
edges, until they fill a batch. Rows of a batch do not influence each other in evaluation mode.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.clients.shields.mixing import padded_count
from pudica.models.packing import concatenate
from pudica.strategies.facemix.training import log_rates

if TYPE_CHECKING:
    from pudica.strategies.facemix.strategy import FaceMix

SERVING = "serving"
WAIT_SECONDS = 0.5
"""The longest that a request waits for those of other edges."""


@dataclass
class ServingResult:
    """The measurements of serving all requests of all edges.

    Attributes
    ----------
    rows : list of dict
        Rows and batches that were computed, seconds, and, of edges that report, accuracy and
        balanced accuracy by attribute and in the mean.
    counts : dict of str to int64 ndarray
        By edge that reports, how often which answer was given, (A, K, K): truth, then answer.
    """

    rows: list[dict[str, Any]]
    counts: dict[str, np.ndarray]

    def frame(self) -> pd.DataFrame:
        """Return the measurements, one row each."""
        return pd.DataFrame(self.rows)


class EdgeRequest(NamedTuple):
    """An edge's request: its number and its mixtures, of which there are none once it is done."""

    number: int
    rows: torch.Tensor


class Serving:
    """All requests of all edges of one case.

    Parameters
    ----------
    strategy : FaceMix
        With a trained model, and edges that have joined.
    """

    def __init__(self, strategy: FaceMix) -> None:
        self.strategy = strategy
        self.settings = strategy.settings
        self.main = strategy.model.main.eval()
        self.numbers = dict.fromkeys(strategy.cohort.nodes, 0)
        self.totals: dict[str, int] = {}
        self.waiting: dict[str, EdgeRequest] = {}
        self.since = 0.0
        self.rows = self.batches = 0
        self.seconds = 0.0

    def run(self) -> dict[str, np.ndarray]:
        """Give edges their stages, answer all requests, and return edges' counts."""
        began = time.perf_counter()
        self._send_stages()
        first = dict.fromkeys(self.totals, self.strategy.request({}))
        stream = self.strategy.cohort.stream_batched(protocol.INFER, first, self._read)
        for requests in stream:
            stream.send(self._answer(requests, stream.outstanding))
        finished = [name for name, total in self.totals.items() if self.numbers[name] == total]
        self._require_min_edges(len(finished))
        self.seconds = time.perf_counter() - began
        served = {"rows": self.rows, "batches": self.batches, "seconds": self.seconds}
        for metric, value in served.items():
            self.strategy.log(SERVING, metric, value, round=0)
        return self._ask_counts(finished) if self.settings.report else {}

    def _send_stages(self) -> None:
        strategy = self.strategy
        asked = {"attributes": len(strategy.attributes), "answers": strategy.answers}
        requests = dict.fromkeys(
            strategy.cohort.nodes, strategy.request(asked, **strategy.end_arrays())
        )
        replies = strategy.cohort.send_and_receive(protocol.ADOPT, requests, self._read_total)
        self.totals = replies
        self._require_min_edges(len(replies))

    def _require_min_edges(self, replied: int) -> None:
        what = f"facemix ({self.strategy.case})"
        self.strategy.cohort.require_min_replies(self.strategy.min_nodes, replied, what)

    def _read_total(self, name: str, content: RecordDict) -> int:
        """Return an edge's number of requests, which follows from its number of test images."""
        total = -(-self.strategy.edges[name].test // self.settings.request)
        if protocol.count_of(content, "requests", total) != total:
            raise ValueError(f"its images make {total} requests")
        return total

    def _read(self, name: str, content: RecordDict) -> EdgeRequest:
        shield, size = self.strategy.model.shield, self.settings.request
        if protocol.count_of(content, "done", 1):
            return EdgeRequest(-1, torch.empty(0, *shield.shape))
        number = protocol.count_of(content, "number", self.totals[name] - 1)
        if number < self.numbers[name]:
            raise ValueError(f"asks request {number} after {self.numbers[name]}")
        images = min(size, self.strategy.edges[name].test - number * size)
        rows = padded_count(images, shield.config)
        shape = (rows, *shield.shape)
        mixtures = protocol.from_wire(content, "mixtures", shape, self.settings.wire)
        return EdgeRequest(number, mixtures)

    def _answer(self, asked: Mapping[str, EdgeRequest], expected: int) -> dict[str, RecordDict]:
        """Take requests; return edges' answers once it is time to compute them."""
        for name, request in asked.items():
            if not len(request.rows):
                self.numbers[name] = self.totals[name]
                continue
            if not self.waiting:
                self.since = time.monotonic()
            self.waiting[name] = request
        rows = sum(len(request.rows) for request in self.waiting.values())
        late = time.monotonic() - self.since >= WAIT_SECONDS
        is_due = rows and (not expected or late or rows >= self.settings.batch)
        answers = self._answer_waiting() if is_due else {}
        if asked or answers:
            done, total = sum(self.numbers.values()), sum(self.totals.values())
            what = f"serving ({self.strategy.case})"
            self.strategy.recorder.progress(what, done, total, "request")
        return answers

    def _answer_waiting(self) -> dict[str, RecordDict]:
        waiting, self.waiting = self.waiting, {}
        outputs = self._compute([request.rows for request in waiting.values()])
        answers: dict[str, RecordDict] = {}
        for (name, request), rows in zip(waiting.items(), outputs, strict=True):
            self.numbers[name] = request.number + 1
            array = Array(protocol.on_wire(rows, self.settings.wire))
            answers[name] = self.strategy.request({"number": request.number}, outputs=array)
        return answers

    @torch.no_grad()
    def _compute(self, asked: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the cloud's outputs for each edge's rows, computed in batches of all of them."""
        compute, rows = self.strategy.compute, concatenate(asked)
        parts = rows.split(self.settings.batch)
        self.rows, self.batches = self.rows + len(rows), self.batches + len(parts)
        outputs = [compute.forward(self.main, compute.move_batch(part)).cpu() for part in parts]
        return list(concatenate(outputs).split([len(own) for own in asked]))

    def _ask_counts(self, names: list[str]) -> dict[str, np.ndarray]:
        """Return how often edges were right, and log their rates; some edges do not report."""
        strategy = self.strategy
        shape = (len(strategy.attributes), strategy.answers, strategy.answers)

        def read(name: str, content: RecordDict) -> np.ndarray:
            counts = protocol.array_of(content, "counts", shape, "int64")
            total = strategy.edges[name].test
            # Each by itself first: sums of what is larger overflow, and may then be right.
            within = ((counts >= 0) & (counts <= total)).all()
            if not within or (counts.sum((1, 2)) != total).any():
                raise ValueError("other numbers of test images than it joined with")
            return counts

        asked = [name for name in names if strategy.edges[name].reports]
        requests = dict.fromkeys(asked, strategy.request({}))
        replies = strategy.cohort.send_and_receive(protocol.COUNTS, requests, read)
        if replies:
            total = torch.from_numpy(sum(replies.values()))  # type: ignore[arg-type]
            log_rates(strategy, "test", total)
        return replies
