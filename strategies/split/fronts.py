"""How the devices' fronts learn, and are kept equal or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from flwr.app import Array, RecordDict
from torch import nn

from pudica.clients import protocol
from pudica.models import optimizers, packing
from pudica.models.optimizers import Optimizing
from pudica.models.packing import select_prefix
from pudica.strategies.split.costs import BACKWARD, FORWARD, read_seconds
from pudica.strategies.split.devices import Devices

State = dict[str, torch.Tensor]
Extras = tuple[dict[str, protocol.Scalar], dict[str, Array]]


OPTIMIZER = "optimizer/"
"""How names of an optimiser's state begin where it is handed on with a front."""
NOTHING: dict[str, protocol.Scalar] = {"epoch": 0, "step": 0, "count": 0}
"""A request for no batches."""


class Fronts(ABC):
    """What goes along with requests, and what happens with gradients at the cut.

    Parameters
    ----------
    devices : Devices
    front : Module
        What travels of the front with which all devices start.
    optimizer : OptimizerConfig or callable
        Of the fronts.
    """

    learns = True
    returns_gradients = False
    """Whether devices turn gradients at the cut into the front's, in an exchange of its own."""
    is_handed_on = False
    """Whether the front is fetched before another device gets it, in an exchange of its own."""

    def __init__(self, devices: Devices, front: nn.Module, optimizer: Optimizing) -> None:
        self.devices = devices
        self.front = front
        self.config = optimizer
        self.met: set[str] = set()

    @property
    def is_here(self) -> bool:
        """Whether the cloud's front is the one that devices go on with."""
        return not self.met

    def forget(self, names: Set[str]) -> Set[str]:
        """Note that some devices have nothing of this run any more; return whose front is lost."""
        self.met -= names
        return set()

    def extra_payload(self, name: str) -> Extras:
        """Return config and arrays to add to a request for the device's next batches."""
        return {}, {} if name in self.met else {"front": self.packed()}

    def note_answers(self, names: Iterable[str]) -> None:
        """Note who has the front that was sent along."""
        self.met.update(names)

    @abstractmethod
    def learn(self, gradients: Mapping[str, torch.Tensor], epoch: int, turn: int) -> None:
        """Bring the gradients at the cut of one turn of an epoch to the fronts."""

    def flush(self, turn: int) -> None:
        """Deliver what the devices have not got yet, before anything is measured.

        Parameters
        ----------
        turn : int
            After which this is.
        """
        self._deliver([n for n in self.devices.cohort.nodes if n not in self.met], turn)

    def _deliver(self, names: Sequence[str], turn: int) -> None:
        """Send what goes along, without asking for anything; the fronts are kept."""
        kept = {"turn": turn, "needed": self.devices.needed, "keep": 1}
        requests = {}
        for name in names:
            config, arrays = self.extra_payload(name)
            requests[name] = self.devices.request({**NOTHING, **kept, **config}, **arrays)
        answered = self.devices.send_and_receive(protocol.SMASH, requests, _seconds)
        self.note_answers(answered)

    def shared(self) -> dict[str, Array]:
        """Return the front to send along with requests that measure; none if devices have it."""
        return {}

    def replace(self) -> None:  # noqa: B027
        """Note that the cloud's front was replaced."""

    def packed(self) -> Array:
        """Return the cloud's front as one array."""
        return Array(packing.pack(packing.state_tensors(self.front)))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything that the next turn depends on, of the cloud."""
        return {f"front/{k}": v for k, v in self.front.state_dict().items()}

    def note(self) -> dict[str, Any]:
        """Return what there is to remember besides tensors."""
        return {"met": sorted(self.met)}

    def restore(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put back what :meth:`tensors` and :meth:`note` returned."""
        self.front.load_state_dict(select_prefix("front/", tensors))
        self.met = set(note["met"])


class Frozen(Fronts):
    """No front learns: all devices keep the one they got."""

    learns = False

    def learn(self, gradients: Mapping[str, torch.Tensor], epoch: int, turn: int) -> None:
        """Nothing goes back."""


class Private(Fronts):
    """Each device keeps a front of its own; a gradient shares a message with the next request."""

    def __init__(self, devices: Devices, front: nn.Module, optimizer: Optimizing) -> None:
        super().__init__(devices, front, optimizer)
        self.waiting: dict[str, tuple[torch.Tensor, int]] = {}

    def forget(self, names: Set[str]) -> Set[str]:
        """Note that some devices have nothing of this run any more; return whose front is lost."""
        lost = self.met & names
        super().forget(names)
        self.waiting = {name: each for name, each in self.waiting.items() if name not in lost}
        return lost

    def learn(
        self,
        gradients: Mapping[str, torch.Tensor],
        epoch: int,  # noqa: ARG002
        turn: int,
    ) -> None:
        """Keep the gradients until the devices are asked again."""
        self.waiting |= {name: (gradient, turn) for name, gradient in gradients.items()}

    def extra_payload(self, name: str) -> Extras:
        """Return the gradient of the device's last batches, if it has not got it."""
        _, front = super().extra_payload(name)
        config, gradient = self._gradient(name)
        return config, front | gradient

    def _gradient(self, name: str) -> Extras:
        if name not in self.waiting:
            return {}, {}
        gradient, turn = self.waiting.pop(name)
        return self.devices.gradient(gradient, turn)

    def flush(self, turn: int) -> None:
        """Send the gradients that wait, and the front to those that never had it."""
        self._deliver(list(self.devices.cohort.nodes), turn)

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
        gradients = select_prefix("waiting/", tensors)
        self.waiting = {n: (gradients[n], turn) for n, turn in note["waiting"].items()}


class Handoff(Private):
    """One front goes from device to device, by way of the cloud, with its optimiser's state."""

    is_handed_on = True

    def __init__(self, devices: Devices, front: nn.Module, optimizer: Optimizing) -> None:
        super().__init__(devices, front, optimizer)
        self.holder = ""
        self.state: State = {}
        self._is_fetching = False

    @property
    def is_here(self) -> bool:
        """Whether no device has the front."""
        return not self.holder

    def forget(self, names: Set[str]) -> Set[str]:
        """Note that some devices have nothing of this run any more; return whose front is lost."""
        lost = {self.holder} & names
        super().forget(names)
        if lost:
            self.holder = ""
        return lost

    def extra_payload(self, name: str) -> Extras:
        """Return the gradient for the device that has the front, or the front for another."""
        if name == self.holder:
            return self._gradient(name)
        state = {key: Array(value.numpy()) for key, value in self.state.items()}
        return {}, {"front": self.packed(), **state}

    def note_answers(self, names: Iterable[str]) -> None:
        """Note who has the front now."""
        super().note_answers(names)
        self.holder = next(iter(names), self.holder)

    def flush(self, turn: int) -> None:  # noqa: ARG002
        """Bring the front to the cloud."""
        self.take_front(
            self.devices.send_and_receive(protocol.FRONT, self.fetch(), self.read_front)
        )

    def shared(self) -> dict[str, Array]:
        """Return the front, which most devices have not."""
        return {"front": self.packed()}

    def fetch(self, for_name: str = "") -> dict[str, RecordDict]:
        """Return the request that fetches the front; none if it is here, or at ``for_name``.

        There is none either for a holder that is away: :meth:`take_front` says what is lost.
        """
        self._is_fetching = self.holder not in ("", for_name)
        if not self._is_fetching:
            return {}
        config, arrays = self._gradient(self.holder)
        if self.holder not in self.devices.cohort.nodes:
            return {}
        config |= {"turn": int(config.get("of", -1)) + 1, "needed": self.devices.needed}
        return {self.holder: self.devices.request(config, **arrays)}

    def take_front(self, replies: Mapping[str, tuple[torch.Tensor, State]]) -> None:
        """Take the front from its holder; if that failed, the one it was given goes on."""
        if not self._is_fetching:
            return
        self._is_fetching = False
        for front, self.state in replies.values():
            packing.unpack(front, packing.state_tensors(self.front))
        if not replies:
            self.devices.recorder.event(
                f"{self.holder} did not hand on the front: what it learnt since it got it is lost"
            )
        self.holder = ""

    def read_front(self, _: str, content: RecordDict) -> tuple[torch.Tensor, State]:
        """Return a front, packed, and the state of its optimiser, if they fit."""
        arrays = protocol.arrays_of(content)
        for key, value in arrays.items():
            protocol.check_values(value, f"'{key}' of a front")
        values = {key: torch.from_numpy(value) for key, value in arrays.items()}
        front = values.pop("front")
        if front.dtype != torch.float32:
            raise ValueError(f"a front of type {front.dtype}")
        packing.validate_statistics(front, self.front.state_dict().items())
        state = select_prefix(OPTIMIZER, values)
        if len(state) < len(values):
            raise ValueError(f"a front and {sorted(values)}")
        optimizers.validate_state(self.config, self.front.parameters(), state)
        return front, values

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the front, the state of its optimiser, and the gradient that waits."""
        return super().tensors() | {f"state/{key}": value for key, value in self.state.items()}

    def note(self) -> dict[str, Any]:
        """Return who has the front, too."""
        return super().note() | {"holder": self.holder}

    def restore(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put back what was kept."""
        super().restore(tensors, note)
        self.holder, self.state = note["holder"], select_prefix("state/", tensors)


class Average(Fronts):
    """The cloud has the front: devices get it with each request, and return its gradient.

    With one batch per message this is SGD on the union of the devices' batches, if no layer of
    the front looks at the batch as a whole or draws. With more it is one step on their sum.
    """

    returns_gradients = True

    def __init__(self, devices: Devices, front: nn.Module, optimizer: Optimizing) -> None:
        super().__init__(devices, front, optimizer)
        self.optimizer = optimizers.build(optimizer, front.parameters())
        self._sent: Array | None = None
        self._due: dict[str, torch.Tensor] = {}
        self._turn = 0

    @property
    def is_here(self) -> bool:
        """Always: devices get the front with each request."""
        return True

    def replace(self) -> None:
        """Send another front from now on."""
        self._sent = None

    def extra_payload(self, name: str) -> Extras:  # noqa: ARG002
        """Return the front, the same array for all devices of one turn."""
        if self._sent is None:
            self._sent = self.packed()
        return {}, {"front": self._sent}

    def flush(self, turn: int) -> None:
        """Nothing: whoever measures gets the front with that."""

    def shared(self) -> dict[str, Array]:
        """Return the front: what devices have is a step old."""
        return {"front": self.packed()}

    def learn(
        self,
        gradients: Mapping[str, torch.Tensor],
        epoch: int,  # noqa: ARG002
        turn: int,
    ) -> None:
        """Keep the gradients for the exchange that makes the front's of them."""
        self._due, self._turn = dict(gradients), turn

    def gradient_requests(self) -> dict[str, RecordDict]:
        """Return what lets devices turn gradients at the cut into the front's."""
        requests = {}
        for name, gradient in self._due.items():
            config, arrays = self.devices.gradient(gradient, self._turn)
            requests[name] = self.devices.request(config, **arrays)
        return requests

    def step(
        self, replies: Mapping[str, tuple[torch.Tensor, dict[str, float]]], epoch: int
    ) -> None:
        """Take a step with what came back."""
        for name, (_, seconds) in replies.items():
            self.devices.costs.add(name, seconds)
        if replies:
            counts = {name: len(gradient) for name, gradient in self._due.items()}
            self._step({name: values for name, (values, _) in replies.items()}, counts, epoch)
        self._due = {}

    def read_gradient(self, _: str, content: RecordDict) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the gradient of a device's front and its buffers, packed, and seconds."""
        named: list[tuple[str, torch.Tensor]] = [("", p) for p in self.front.parameters()]
        named += self.front.named_buffers()
        wanted = sum(tensor.numel() for _, tensor in named)
        values = torch.from_numpy(protocol.array_of(content, "values", (wanted,)))
        packing.validate_statistics(values, named)
        return values, read_seconds(content, BACKWARD)

    def _step(
        self, values: Mapping[str, torch.Tensor], counts: Mapping[str, int], epoch: int
    ) -> None:
        """Take a step with the sum of the gradients, and take over the mean of the buffers.

        Parameters
        ----------
        values : mapping of str to Tensor
            Of each device that answered, packed: its part of the gradient, then its buffers.
        counts : mapping of str to int
            Examples of each device that was asked. Who answered stands for the others too.
        """
        parameters, buffers = list(self.front.parameters()), list(self.front.buffers())
        answered = sum(counts[name] for name in values)
        total = torch.stack(list(values.values())).sum(0) * (sum(counts.values()) / answered)
        mean = torch.stack([v * (counts[n] / answered) for n, v in values.items()]).sum(0)
        first = sum(parameter.numel() for parameter in parameters)
        gradients = [torch.empty_like(parameter) for parameter in parameters]
        packing.unpack(total[:first], gradients)
        packing.unpack(mean[first:], buffers)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.optimizer:
            optimizers.begin_epoch(self.optimizer, self.config, epoch)
            self.optimizer.step()
        self._sent = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the front and its optimiser's state."""
        state = optimizers.optimizer_state(self.optimizer)
        return super().tensors() | {f"front-optimizer/{k}": v for k, v in state.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put back what was kept."""
        super().restore(tensors, note)
        optimizers.load_optimizer_state(self.optimizer, select_prefix("front-optimizer/", tensors))


MODES: dict[str, type[Fronts]] = {
    "average": Average,
    "frozen": Frozen,
    "handoff": Handoff,
    "private": Private,
}


def _seconds(_: str, content: RecordDict) -> dict[str, float]:
    return read_seconds(content, FORWARD)
