"""How the devices' fronts learn, and are kept equal or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import Array, RecordDict

from clients import protocol
from clients.shields.front import Front
from models import optimizers, packing
from strategies.split.cloud import under
from strategies.split.session import Session

Extras = tuple[dict[str, protocol.Scalar], dict[str, Array]]


class Fronts(ABC):
    """What goes along with requests, and what happens with gradients at the cut.

    Parameters
    ----------
    session : Session
    front : Front
        With which all devices start.
    """

    learns = True

    def __init__(self, session: Session, front: Front) -> None:
        self.session = session
        self.front = front
        self.met: set[str] = set()

    def goes_along(self, name: str) -> Extras:
        """Return config and arrays to add to a request for the device's next batches."""
        return {}, {} if name in self.met else {"front": self.packed()}

    def answered(self, names: Iterable[str]) -> None:
        """Note who has the front that was sent along."""
        self.met.update(names)

    @abstractmethod
    def learn(self, gradients: Mapping[str, torch.Tensor], epoch: int, turn: int) -> None:
        """Bring the gradients at the cut of one turn of an epoch to the fronts."""

    def settle(self, turn: int) -> None:  # noqa: B027
        """Deliver what the devices have not got yet, before anything is measured.

        Parameters
        ----------
        turn : int
            After which this is.
        """

    def shared(self) -> dict[str, Array]:
        """Return the front to send along with requests that measure; none if devices have it."""
        return {}

    def packed(self) -> Array:
        """Return the cloud's front as one array."""
        return Array(packing.packed(packing.state(self.front)))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything that the next turn depends on, of the cloud."""
        return {f"front/{k}": v for k, v in self.front.state_dict().items()}

    def note(self) -> dict[str, Any]:
        """Return what there is to remember besides tensors."""
        return {"met": sorted(self.met)}

    def restore(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put back what :meth:`tensors` and :meth:`note` returned."""
        self.front.load_state_dict(under("front/", tensors))
        self.met = set(note["met"])


class Frozen(Fronts):
    """No front learns: all devices keep the one they got."""

    learns = False

    def learn(self, gradients: Mapping[str, torch.Tensor], epoch: int, turn: int) -> None:
        """Nothing goes back."""


class Private(Fronts):
    """Each device keeps a front of its own; a gradient shares a message with the next request."""

    def __init__(self, session: Session, front: Front) -> None:
        super().__init__(session, front)
        self.waiting: dict[str, tuple[torch.Tensor, int]] = {}

    def learn(
        self,
        gradients: Mapping[str, torch.Tensor],
        epoch: int,  # noqa: ARG002
        turn: int,
    ) -> None:
        """Keep the gradients until the devices are asked again."""
        self.waiting |= {name: (gradient, turn) for name, gradient in gradients.items()}

    def goes_along(self, name: str) -> Extras:
        """Return the gradient of the device's last batches, if it has not got it."""
        _, front = super().goes_along(name)
        config, gradient = self._gradient(name)
        return config, front | gradient

    def _gradient(self, name: str) -> Extras:
        if name not in self.waiting:
            return {}, {}
        gradient, turn = self.waiting.pop(name)
        return self.session.gradient(gradient, turn)

    def settle(self, turn: int) -> None:
        """Send the gradients that wait, without asking for anything; all fronts are kept."""
        requests = {}
        for name in self.session.exchanges.nodes:
            config, arrays = self._gradient(name)
            nothing = {"epoch": 0, "step": 0, "count": 0, "keep": 1}
            kept = {"turn": turn, "needed": self.session.needed}
            requests[name] = self.session.request({**nothing, **kept, **config}, **arrays)
        self.session.exchanges.ask(protocol.SMASH, requests, protocol.numbers_of)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the front that devices start with, and the gradients that wait."""
        waiting = {f"waiting/{name}": gradient for name, (gradient, _) in self.waiting.items()}
        return super().tensors() | waiting

    def note(self) -> dict[str, Any]:
        """Return who has begun, and of which turns the gradients are."""
        turns = {name: turn for name, (_, turn) in self.waiting.items()}
        return super().note() | {"waiting": turns}

    def restore(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put back what was kept."""
        super().restore(tensors, note)
        gradients = under("waiting/", tensors)
        self.waiting = {n: (gradients[n], turn) for n, turn in note["waiting"].items()}


class Handoff(Private):
    """One front goes from device to device, by way of the cloud."""

    def __init__(self, session: Session, front: Front) -> None:
        super().__init__(session, front)
        self.holder = ""

    def goes_along(self, name: str) -> Extras:
        """Fetch the front from whoever has it, and send it to the device whose turn it is."""
        if name == self.holder:
            return self._gradient(name)
        self._fetch()
        return {}, {"front": self.packed()}

    def answered(self, names: Iterable[str]) -> None:
        """Note who has the front now."""
        super().answered(names)
        self.holder = next(iter(names), self.holder)

    def settle(self, turn: int) -> None:  # noqa: ARG002
        """Bring the front to the cloud."""
        self._fetch()

    def shared(self) -> dict[str, Array]:
        """Return the front, which most devices have not."""
        return {"front": self.packed()}

    def _fetch(self) -> None:
        """Take the front from its holder; if that fails, the one it was given goes on."""
        if not self.holder:
            return
        config, arrays = self._gradient(self.holder)
        config |= {"turn": int(config.get("of", -2)) + 1, "needed": self.session.needed}
        if self.holder in self.session.exchanges.nodes:
            request = self.session.request(config, **arrays)
            found = self.session.exchanges.ask(protocol.FRONT, {self.holder: request}, self._read)
            if not found:
                self.session.recorder.event(
                    f"{self.holder} did not hand on the front: what it learnt since it got it is "
                    "lost"
                )
        self.holder = ""

    def _read(self, content: RecordDict) -> None:
        values = protocol.arrays_of(content)["front"]
        packing.unpack(finite(values, "a front"), packing.state(self.front))

    def note(self) -> dict[str, Any]:
        """Return who has the front, too."""
        return super().note() | {"holder": self.holder}

    def restore(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put back what was kept."""
        super().restore(tensors, note)
        self.holder = note["holder"]


class Average(Fronts):
    """The cloud has the front: devices get it with each request, and return its gradient.

    With one batch per message this is SGD on the union of the devices' batches.
    """

    def __init__(self, session: Session, front: Front) -> None:
        super().__init__(session, front)
        settings = session.settings
        self.config = settings.front_optimizer or settings.optimizer
        self.optimizer = optimizers.build(self.config, front.parameters())
        self._sent: Array | None = None

    def goes_along(self, name: str) -> Extras:  # noqa: ARG002
        """Return the front, the same array for all devices of one turn."""
        if self._sent is None:
            self._sent = self.packed()
        return {}, {"front": self._sent}

    def shared(self) -> dict[str, Array]:
        """Return the front: what devices have is a step old."""
        return {"front": self.packed()}

    def learn(self, gradients: Mapping[str, torch.Tensor], epoch: int, turn: int) -> None:
        """Let the devices turn gradients at the cut into the front's, and take a step."""
        requests = {}
        for name, gradient in gradients.items():
            config, arrays = self.session.gradient(gradient, turn)
            requests[name] = self.session.request(config, **arrays)
        replies = self.session.exchanges.ask(protocol.FRONT_GRADIENT, requests, self._read)
        self.session.need(len(replies), len(requests))
        for name, (_, seconds) in replies.items():
            self.session.costs.spent(name, seconds)
        found = {name: values for name, (values, _) in replies.items()}
        counts = [len(gradients[name]) for name in found]
        shares = [count / sum(counts) for count in counts]
        mean = torch.stack([v * s for v, s in zip(found.values(), shares, strict=True)]).sum(0)
        self._step(mean, epoch)
        self._sent = None

    def _read(self, content: RecordDict) -> tuple[torch.Tensor, dict[str, float]]:
        values = finite(protocol.arrays_of(content)["values"], "a front's gradient")
        wanted = sum(tensor.numel() for tensor in (*self.front.parameters(), *self.front.buffers()))
        if tuple(values.shape) != (wanted,):
            raise ValueError(f"a front's gradient must be ({wanted},), is {tuple(values.shape)}")
        return values, protocol.numbers_of(content)

    def _step(self, values: torch.Tensor, epoch: int) -> None:
        """Take a step with a packed gradient, and take over the buffers behind it."""
        parameters, buffers = list(self.front.parameters()), list(self.front.buffers())
        gradients = [torch.empty_like(parameter) for parameter in parameters]
        packing.unpack(values, [*gradients, *buffers])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.optimizer:
            optimizers.set_rate(self.optimizer, self.config.rate(epoch))
            self.optimizer.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the front and its optimiser's state."""
        state = optimizers.state_of(self.optimizer)
        return super().tensors() | {f"front-optimizer/{k}": v for k, v in state.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put back what was kept."""
        super().restore(tensors, note)
        optimizers.restore(self.optimizer, under("front-optimizer/", tensors))


MODES: dict[str, type[Fronts]] = {
    "average": Average,
    "frozen": Frozen,
    "handoff": Handoff,
    "private": Private,
}


def finite(values: Any, what: str) -> torch.Tensor:
    """Return values as a float32 tensor; raise ValueError unless they are finite floats."""
    tensor = torch.from_numpy(values)
    if tensor.dtype != torch.float32 or not packing.all_finite(tensor):
        raise ValueError(f"{what} of type {tensor.dtype}, or with NaN or infinity")
    return tensor
