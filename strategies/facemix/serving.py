"""Inference: edges ask, the cloud computes what several of them asked together, edges answer.

A request's answer and the next request share a message. Rows of different edges stand in one batch
and do not meet: in evaluation mode each row of a batch is computed by itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import Array, RecordDict

from clients import protocol
from models.packing import joined
from strategies.facemix.session import Session
from strategies.facemix.together import admitted
from strategies.facemix.training import log_rates

SERVING = "serving"


class Asked(NamedTuple):
    """What an edge asks: the request's number, and its mixtures; none if it is done."""

    number: int
    rows: torch.Tensor


class Serving:
    """All test requests of all edges of one case.

    Parameters
    ----------
    session : Session
        With a model that is trained.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.settings = session.settings
        self.main = session.model.main.eval()
        self.numbers = dict.fromkeys(session.exchanges.nodes, 0)
        self.totals: dict[str, int] = {}
        self.rows = self.batches = 0
        self.seconds = 0.0

    def run(self) -> None:
        """Give edges their stages, answer all requests, and ask what edges say of it."""
        began = time.perf_counter()
        self._hand_over()
        first = dict.fromkeys(self.totals, self.session.request({}))
        self.session.exchanges.confer(protocol.INFER, first, self._read, self._answers)
        finished = [name for name, total in self.totals.items() if self.numbers[name] == total]
        self.session.need(len(finished))
        self.seconds = time.perf_counter() - began
        self._log()
        if self.settings.report:
            self._count(finished)

    def _hand_over(self) -> None:
        content = self.session.request({}, **self.session.ends())
        names = list(self.session.exchanges.nodes)
        adopted = self.session.exchanges.ask(
            protocol.ADOPT, dict.fromkeys(names, content), lambda _: True
        )
        size, edges = self.settings.request, self.session.edges
        self.totals = {name: -(-edges[name].test // size) for name in adopted}
        self.session.need(len(self.totals))

    def _read(self, content: RecordDict) -> Asked:
        """Return an edge's mixtures, of which request; none once it has no more to ask."""
        shield, numbers = self.session.model.shield, protocol.numbers_of(content)
        if numbers["done"]:
            return Asked(-1, torch.empty(0, *shield.shape))
        rows = admitted(content, "mixtures", shield.shape, self.settings.wire)
        if len(rows) > shield.batch:
            raise ValueError(f"{len(rows)} mixtures in a request of {self.settings.request}")
        return Asked(int(numbers["number"]), rows)

    def _answers(self, asked: Mapping[str, Asked]) -> dict[str, RecordDict]:
        """Compute what arrived together, and return each edge's answer."""
        waiting = {name: request for name, request in asked.items() if len(request.rows)}
        for name in list(waiting):
            if not self.numbers[name] <= waiting[name].number < self.totals[name]:
                number = waiting.pop(name).number
                why = f"asks request {number} after {self.numbers[name]} of {self.totals[name]}"
                self.session.exchanges.reject(name, f"{protocol.INFER}: {why}")
        outputs = self._computed([each.rows for each in waiting.values()]) if waiting else []
        answers: dict[str, RecordDict] = {}
        for (name, request), rows in zip(waiting.items(), outputs, strict=True):
            self.numbers[name] = request.number + 1
            array = Array(protocol.on_wire(rows, self.settings.wire))
            answers[name] = self.session.request({"number": request.number}, outputs=array)
        for name in [name for name, request in asked.items() if not len(request.rows)]:
            self.numbers[name] = self.totals[name]
        done, total = sum(self.numbers.values()), sum(self.totals.values())
        self.session.recorder.progress(f"serving ({self.session.case})", done, total, "request")
        return answers

    @torch.no_grad()
    def _computed(self, asked: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return what the cloud's stage makes of each edge's rows, in batches of all of them."""
        compute, rows = self.session.compute, joined(asked)
        parts = rows.split(self.settings.batch)
        self.rows, self.batches = self.rows + len(rows), self.batches + len(parts)
        outputs = [compute.outputs(self.main, compute.place(part)).cpu() for part in parts]
        return list(joined(outputs).split([len(own) for own in asked]))

    def _log(self) -> None:
        served = {"rows": self.rows, "batches": self.batches, "seconds": self.seconds}
        for metric, value in served.items():
            self.session.log(SERVING, metric, value)

    def _count(self, names: list[str]) -> None:
        """Log what edges say of how often they were right; those that say nothing are left out."""
        shape = (len(self.session.data.attributes), 2, 2)

        def read(content: RecordDict) -> np.ndarray:
            counts = protocol.arrays_of(content)["counts"]
            if counts.shape != shape or counts.dtype.kind != "i" or counts.min() < 0:
                raise ValueError(f"counts of shape {counts.shape} and type {counts.dtype}")
            return counts

        requests = dict.fromkeys(names, self.session.request({}))
        replies = self.session.exchanges.ask(protocol.COUNTS, requests, read)
        for name in list(replies):
            if (replies[name].sum((1, 2)) != self.session.edges[name].test).any():
                why = f"{protocol.COUNTS}: other numbers of test images than it joined with"
                self.session.exchanges.reject(name, why)
                del replies[name]
        if replies:
            total = torch.from_numpy(sum(replies.values()))  # type: ignore[arg-type]
            log_rates(self.session, "test", total, self.settings.training.epochs)
