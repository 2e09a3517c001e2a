"""Local training: every participant trains its private model, each at its own pace."""

from __future__ import annotations

from flwr.app import RecordDict

from clients import protocol
from strategies.themis.organiser import VARIANTS, Organiser, of_variant


def train_models(organiser: Organiser) -> None:
    """Train all models of all cases; a participant that fails is out of the competition."""
    for variant in VARIANTS:
        LocalTraining(organiser, variant).run()
    exchanges, recorder = organiser.exchanges, organiser.recorder
    exchanges.nodes = {
        name: node for name, node in exchanges.nodes.items() if recorder.finished(f"local/{name}")
    }
    exchanges.need(organiser.settings.min_participants, len(exchanges.nodes), protocol.LOCAL)


class LocalTraining:
    """The training of all models of one variant, an epoch per message.

    Parameters
    ----------
    organiser : Organiser
    variant : {"honest", "cheating"}
    """

    def __init__(self, organiser: Organiser, variant: str) -> None:
        self.organiser = organiser
        self.recorder = organiser.recorder
        self.variant = variant
        self.names = of_variant(organiser.contestants(), variant)
        experiment = organiser.experiment
        self.schedule = {p.name: p.training or experiment.training for p in experiment.participants}
        self.epochs = {
            node: self.recorder.position(f"local/{name}").get("epoch", 0)
            for node, name in self.names.items()
        }

    def run(self) -> None:
        """Ask for epoch after epoch until every participant says that it is finished."""
        left = [n for n, name in self.names.items() if not self.recorder.finished(f"local/{name}")]
        first = {node: self._next_epoch(node) for node in left}
        self.organiser.exchanges.converse(protocol.LOCAL, first, _measured, self._note)

    def _next_epoch(self, node: str) -> RecordDict:
        return self.organiser.request(self.variant, epoch=self.epochs[node] + 1)

    def _note(self, node: str, metrics: dict[str, float]) -> RecordDict | None:
        """Record an epoch and return the request for the next one, if there is one."""
        name = self.names[node]
        self.epochs[node] += 1
        finished = bool(metrics["finished"]) or self.epochs[node] >= self.schedule[node].epochs
        for metric in ("loss", "accuracy"):
            if metric in metrics:
                self.recorder.log(
                    "local", metric, metrics[metric], node=name, round=self.epochs[node]
                )
        if finished:
            self.recorder.log("local", "validation_accuracy", metrics["best"], node=name)
            self.recorder.finish(f"local/{name}")
        else:
            self.recorder.stand(f"local/{name}", {}, epoch=self.epochs[node])
        self._show()
        return None if finished else self._next_epoch(node)

    def _show(self) -> None:
        total = sum(self.schedule[node].epochs for node in self.names)
        done = sum(
            self.schedule[node].epochs
            if self.recorder.finished(f"local/{name}")
            else self.epochs[node]
            for node, name in self.names.items()
        )
        suffix = "" if self.variant == "honest" else f" ({self.variant})"
        self.recorder.progress(f"local training{suffix}", done, total, "epoch")


def _measured(content: RecordDict) -> dict[str, float]:
    """Return what a participant says of an epoch."""
    metrics = protocol.numbers_of(content)
    return {"finished": metrics["finished"], "best": metrics["best"], **metrics}
