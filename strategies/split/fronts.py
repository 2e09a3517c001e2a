"""How the devices' fronts learn, and are kept equal or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from flwr.app import Array, RecordDict
from torch import nn

from pudica.clients import protocol
from pudica.models import optimizers, packing
from pudica.models.optimizers import Optimizing
from pudica.models.packing import select_prefix
from pudica.strategies.split.devices import BACKWARD, FORWARD, Devices, Extras, read_seconds

State = dict[str, torch.Tensor]
OPTIMIZER = "optimizer/"
"""How names of an optimiser's state begin where it is handed on with a front."""


class Fronts:
    """What goes along with requests, and what happens with gradients at the cut.

    As it stands no front learns: all devices keep the one they got.

    Parameters
    ----------
    devices : Devices
    front : Module
        What travels of the front with which all devices start.
    optimizer : OptimizerConfig or callable
        Of the fronts.

    Attributes
    ----------
    with_front : set of str
        Who has a front of this run.
    waiting : dict of str to (Tensor, int)
        Gradients at the cut that devices have not got yet, and of which turn they are.
    holder : str
        Who has the front that is handed on; empty if it is here.
    state : dict of str to Tensor
        Of that front's optimiser.
    """

    learns = False
    is_handed_on = False

    def __init__(self, devices: Devices, front: nn.Module, optimizer: Optimizing) -> None:
        self.devices = devices
        self.front = front
        self.config = optimizer
        self.optimizer: torch.optim.Optimizer | None = None
        self.with_front: set[str] = set()
        self.waiting: dict[str, tuple[torch.Tensor, int]] = {}
        self.holder = ""
        self.state: State = {}

    @property
    def is_here(self) -> bool:
        """Whether the cloud's front is the one that devices go on with."""
        return not self.with_front

    def owners(self) -> Set[str]:
        """Return who has a front that has learnt there and is nowhere else."""
        return set()

    def forget(self, names: Set[str]) -> Set[str]:
        """Note that some devices have nothing of this run any more; return whose front is lost."""
        lost = self.owners() & names
        self.with_front -= names
        self.waiting = {name: each for name, each in self.waiting.items() if name not in names}
        if self.holder in names:
            self.holder = ""
        return lost

    # ------------------------------------------------------------ with requests for batches

    def extra_payload(self, name: str) -> Extras:
        """Return config and arrays to add to a request for the device's next batches."""
        config, arrays = self._take_gradient(name)
        return config, arrays if name in self.with_front else {"front": self.packed(), **arrays}

    def request(
        self, name: str, turn: int, epoch: int = 0, step: int = 0, count: int = 0, keep: bool = True
    ) -> RecordDict:
        """Return a request for ``count`` batches, which the device may have to keep a state of."""
        own = {"turn": turn, "epoch": epoch, "step": step, "count": count}
        config, arrays = self.extra_payload(name)
        kept = {"keep": int(keep), "needed": self.devices.needed}
        return self.devices.request({**own, **kept, **config}, **arrays)

    def _take_gradient(self, name: str) -> Extras:
        if name not in self.waiting:
            return {}, {}
        return self.devices.gradient(*self.waiting.pop(name))

    def note_answers(self, names: Iterable[str]) -> None:
        """Note who has the front that was sent along."""
        self.with_front.update(names)

    def learn(self, gradients: Mapping[str, torch.Tensor], turn: int) -> None:
        """Keep the gradients at the cut of one turn until the devices are asked again."""
        self.waiting |= {name: (gradient, turn) for name, gradient in gradients.items()}

    # ------------------------------------------------------------------ exchanges of its own

    def list_kinds(self, step: int) -> list[str]:  # noqa: ARG002
        """Return the exchanges of a turn, of which one asks for batches from a step on."""
        return [protocol.SMASH]

    def requests(self, names: Sequence[str]) -> dict[str, RecordDict]:  # noqa: ARG002
        """Return the requests of an exchange of the fronts' own, before or after some devices'."""
        return {}

    def read(self, name: str, content: RecordDict) -> Any:
        """Return what such a reply says; KeyError or ValueError if it makes no sense."""
        raise NotImplementedError

    def take(self, replies: Mapping[str, Any], epoch: int) -> None:
        """Go on with what such replies say."""

    def flush(self, turn: int) -> None:
        """Deliver what devices have not got, before anything is measured after a turn."""
        self._deliver([n for n in self.devices.cohort.nodes if n not in self.with_front], turn)

    def _deliver(self, names: Sequence[str], turn: int) -> None:
        """Send what goes along, without asking for anything; the fronts are kept."""
        requests = {name: self.request(name, turn) for name in names}
        cohort = self.devices.cohort
        self.note_answers(
            cohort.send_and_receive(protocol.SMASH, requests, lambda _, c: read_seconds(c, FORWARD))
        )

    # --------------------------------------------------------------------- the cloud's front

    def shared(self) -> dict[str, Array]:
        """Return the front to send along with requests that measure; none if devices have it."""
        return {}

    def replace(self) -> None:
        """Note that the cloud's front was replaced."""

    def packed(self) -> Array:
        """Return the cloud's front as one array."""
        return Array(packing.pack(packing.state_tensors(self.front)))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything that the next turn depends on, of the cloud."""
        optimizer = optimizers.optimizer_state(self.optimizer)
        return {
            **{f"front/{key}": value for key, value in self.front.state_dict().items()},
            **{f"waiting/{name}": gradient for name, (gradient, _) in self.waiting.items()},
            **{f"state/{key}": value for key, value in self.state.items()},
            **{f"front-optimizer/{key}": value for key, value in optimizer.items()},
        }

    def note(self) -> dict[str, Any]:
        """Return what there is to remember besides tensors."""
        turns = {name: turn for name, (_, turn) in self.waiting.items()}
        return {"met": sorted(self.with_front), "waiting": turns, "holder": self.holder}

    def restore(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put back what :meth:`tensors` and :meth:`note` returned."""
        self.front.load_state_dict(select_prefix("front/", tensors))
        optimizers.load_optimizer_state(self.optimizer, select_prefix("front-optimizer/", tensors))
        self.with_front, self.holder = set(note["met"]), note.get("holder", "")
        self.state = select_prefix("state/", tensors)
        gradients = select_prefix("waiting/", tensors)
        self.waiting = {n: (gradients[n], turn) for n, turn in note.get("waiting", {}).items()}


class Private(Fronts):
    """Each device keeps a front of its own; a gradient shares a message with the next request."""

    learns = True

    def owners(self) -> Set[str]:
        """Return everybody who has begun."""
        return self.with_front

    def flush(self, turn: int) -> None:
        """Send the gradients that wait, and the front to those that never had it."""
        self._deliver(list(self.devices.cohort.nodes), turn)


class Handoff(Fronts):
    """One front goes from device to device, by way of the cloud, with its optimiser's state."""

    learns = True
    is_handed_on = True
    _is_fetching = False

    @property
    def is_here(self) -> bool:
        """Whether no device has the front."""
        return not self.holder

    def owners(self) -> Set[str]:
        """Return who has the front."""
        return {self.holder}

    def extra_payload(self, name: str) -> Extras:
        """Return the gradient for the device that has the front, or the front for another."""
        if name == self.holder:
            return self._take_gradient(name)
        state = {key: Array(value.numpy()) for key, value in self.state.items()}
        return {}, {"front": self.packed(), **state}

    def note_answers(self, names: Iterable[str]) -> None:
        """Note who has the front now."""
        super().note_answers(names)
        self.holder = next(iter(names), self.holder)

    def list_kinds(self, step: int) -> list[str]:
        """Return the exchanges of a turn; before a device's first the front is fetched."""
        return [protocol.SMASH] if step else [protocol.FRONT, protocol.SMASH]

    def requests(self, names: Sequence[str]) -> dict[str, RecordDict]:
        """Return the request that fetches the front for who is next, unless it is there already.

        Where nobody comes next, who has the front keeps it. There is no request either for a
        holder that is away: :meth:`take` says what is lost.
        """
        return self._fetch(names[0] if names else self.holder)

    def _fetch(self, for_name: str = "") -> dict[str, RecordDict]:
        self._is_fetching = self.holder not in ("", for_name)
        if not self._is_fetching:
            return {}
        config, arrays = self._take_gradient(self.holder)
        if self.holder not in self.devices.cohort.nodes:
            return {}
        config |= {"turn": int(config.get("of", -1)) + 1, "needed": self.devices.needed}
        return {self.holder: self.devices.request(config, **arrays)}

    def read(self, name: str, content: RecordDict) -> tuple[torch.Tensor, State]:  # noqa: ARG002
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

    def take(
        self,
        replies: Mapping[str, tuple[torch.Tensor, State]],
        epoch: int = 0,  # noqa: ARG002
    ) -> None:
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

    def flush(self, turn: int) -> None:  # noqa: ARG002
        """Bring the front to the cloud."""
        cohort = self.devices.cohort
        self.take(cohort.send_and_receive(protocol.FRONT, self._fetch(), self.read))

    def shared(self) -> dict[str, Array]:
        """Return the front, which most devices have not."""
        return {"front": self.packed()}


class Average(Fronts):
    """The cloud has the front: devices get it with each request, and return its gradient.

    With one batch per message this is SGD on the union of the devices' batches, if no layer of
    the front looks at the batch as a whole or draws. With more it is one step on their sum.
    """

    learns = True

    def __init__(self, devices: Devices, front: nn.Module, optimizer: Optimizing) -> None:
        super().__init__(devices, front, optimizer)
        self.optimizer = optimizers.build(optimizer, front.parameters())
        self._sent: Array | None = None
        self._counts: dict[str, int] = {}

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

    def list_kinds(self, step: int) -> list[str]:  # noqa: ARG002
        """Return the exchanges of a turn; in the second devices return the front's gradient."""
        return [protocol.SMASH, protocol.FRONT_GRADIENT]

    def requests(self, names: Sequence[str]) -> dict[str, RecordDict]:  # noqa: ARG002
        """Return what lets devices turn gradients at the cut into the front's."""
        self._counts = {name: len(gradient) for name, (gradient, _) in self.waiting.items()}
        requests = {}
        for name in self._counts:
            config, arrays = self._take_gradient(name)
            requests[name] = self.devices.request(config, **arrays)
        return requests

    def read(self, name: str, content: RecordDict) -> tuple[torch.Tensor, dict[str, float]]:  # noqa: ARG002
        """Return the gradient of a device's front and its buffers, packed, and seconds."""
        named: list[tuple[str, torch.Tensor]] = [("", p) for p in self.front.parameters()]
        named += self.front.named_buffers()
        wanted = sum(tensor.numel() for _, tensor in named)
        values = torch.from_numpy(protocol.array_of(content, "values", (wanted,)))
        packing.validate_statistics(values, named)
        return values, read_seconds(content, BACKWARD)

    def take(
        self, replies: Mapping[str, tuple[torch.Tensor, dict[str, float]]], epoch: int
    ) -> None:
        """Take a step with the sum of the gradients, and take over the mean of the buffers.

        Who answered stands for the others who were asked, too.
        """
        for name, (_, seconds) in replies.items():
            self.devices.costs.add(name, seconds)
        if not replies:
            return
        parameters, buffers = list(self.front.parameters()), list(self.front.buffers())
        counts = self._counts
        answered = sum(counts[name] for name in replies)
        packed = torch.stack([values for values, _ in replies.values()])
        total = packed.sum(0) * (sum(counts.values()) / answered)
        shares = [counts[name] / answered for name in replies]
        mean = torch.stack([v * share for v, share in zip(packed, shares, strict=True)]).sum(0)
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

    def flush(self, turn: int) -> None:
        """Nothing: whoever measures gets the front with that."""

    def shared(self) -> dict[str, Array]:
        """Return the front: what devices have is a step old."""
        return {"front": self.packed()}


MODES: dict[str, type[Fronts]] = {
    "average": Average,
    "frozen": Fronts,
    "handoff": Handoff,
    "private": Private,
}
