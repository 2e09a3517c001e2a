"""The Ray actors of a grid, and room for those that take the place of dead ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pudica.simulations.engines.nodes import Worker

# What Ray raises for calls of a dead worker; ObjectLostError if only its reply was left, on a
# machine that is gone.
DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
)


class Share:
    """The resources of one worker, which Ray reserves as soon as some machine has them free.

    Ray does not tell of an actor whether there is room for it; of a reservation it does.
    """

    def __init__(self, num_cpus: float, num_gpus: float) -> None:
        wanted = {"CPU": num_cpus, "GPU": num_gpus}
        self._group = placement_group([{kind: amount for kind, amount in wanted.items() if amount}])

    def is_reserved(self) -> bool:
        """Return whether some machine keeps these resources free for us now."""
        return bool(placement_group_table(self._group)["state"] == "CREATED")

    def build_options(self) -> dict[str, Any]:
        """Return the options of an actor that is to run here."""
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._group)}

    def release(self) -> None:
        """Give the resources back, or stop waiting for them."""
        remove_placement_group(self._group)


class Workers(Mapping[int, Any]):
    """The actors that are not known to be dead, by number.

    Parameters
    ----------
    arguments : tuple
        Of each :class:`.Worker`.
    num_cpus, num_gpus : float
        Resources of each.
    """

    def __init__(self, arguments: tuple[Any, ...], num_cpus: float, num_gpus: float) -> None:
        self._arguments = arguments
        self._resources = (num_cpus, num_gpus)
        self._actor = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(Worker)
        self._actors: dict[int, Any] = {}
        self._machines: dict[int, Any] = {}  # Ray's references to the ids of their machines
        self._shares: dict[int, Share] = {}  # of those that took the place of another

    def __getitem__(self, number: int) -> Any:
        return self._actors[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._actors)

    def __len__(self) -> int:
        return len(self._actors)

    @property
    def started(self) -> list[Any]:
        """Ray's references to what each worker returns once it has started."""
        return list(self._machines.values())

    def start(self, number: int, share: Share | None = None) -> None:
        """Start a worker, in a share that is reserved or where Ray finds room."""
        options = {}
        if share:
            options, self._shares[number] = share.build_options(), share
        actor: Any = self._actor.options(**options).remote(*self._arguments)
        self._actors[number], self._machines[number] = actor, actor.machine.remote()

    def remove(self, number: int) -> None:
        """Let a worker go that is dead, or out of reach, and give its resources back."""
        ray.kill(self._actors.pop(number))
        del self._machines[number]
        if share := self._shares.pop(number, None):
            share.release()

    def new_share(self) -> Share:
        """Return a share for another worker, which may have to wait for it."""
        return Share(*self._resources)

    def describe_needs(self) -> str:
        """Return what each worker needs, in words."""
        num_cpus, num_gpus = self._resources
        return f"{num_cpus:g} CPUs" + (f" and {num_gpus:g} GPUs" if num_gpus else "")

    def find_lost(self) -> list[int]:
        """Return the workers whose machine is gone."""
        alive = {machine["NodeID"] for machine in ray.nodes() if machine["Alive"]}
        machines = {number: self._machine_of(number) for number in self}
        return [number for number, machine in machines.items() if machine and machine not in alive]

    def find_late(self) -> list[int]:
        """Return the workers that have not started, and for which no room is reserved either."""
        unstarted = [number for number in self if not self._has_started(number)]
        return [n for n in unstarted if n not in self._shares or not self._shares[n].is_reserved()]

    def has_share(self, number: int) -> bool:
        """Return whether room was reserved for a worker when it was started."""
        return number in self._shares

    def _has_started(self, number: int) -> bool:
        return bool(ray.wait([self._machines[number]], timeout=0)[0])

    def _machine_of(self, number: int) -> str:
        """Return the id of a worker's machine, as far as it is known."""
        try:
            return str(ray.get(self._machines[number])) if self._has_started(number) else ""
        except DEATHS:
            return ""


def describe_free_resources() -> str:
    """Return how many CPUs and GPUs Ray has, and how many of them are free."""
    free, total = ray.available_resources(), ray.cluster_resources()
    kinds = ("CPU", "GPU") if total.get("GPU") else ("CPU",)
    counts = [f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in kinds]
    return f"Ray has {' and '.join(counts)} free"
