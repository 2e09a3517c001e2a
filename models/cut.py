"""Cutting a model in two: a front for the edge, a back for the cloud, and what each cut costs.

The model is traced with :mod:`torch.fx`, and may be cut after any layer where a single value
crosses: not inside a residual branch or beside one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from models.errors import RequestError, unknown

# Their `training` argument is a constant of the trace.
_MODED = (functional.dropout, functional.dropout2d, functional.alpha_dropout, functional.batch_norm)


@dataclass(frozen=True)
class CutCost:
    """What an edge device pays if the model is cut after one layer.

    Attributes
    ----------
    name, layer : str
        The layer's name, and its type.
    shape : tuple of int
        Of one example's activation at the cut.
    bytes : int
        Of one example's activation, as float32.
    parameters : int
        Of the front.
    share : float
        Of all the model's parameters.
    flops : int
        Of the front's forward pass on one example; a multiplication and an addition are two.
    memory : int
        Bytes of activations that the front keeps for its backward pass on one batch, and the
        activation at the cut.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    bytes: int
    parameters: int
    share: float
    flops: int
    memory: int


class Cutter:
    """A traced model, and where it can be cut.

    Parameters
    ----------
    model : Module
        From images (B, C, H, W) to logits. Its layers are shared with what :meth:`cut` returns.

    Raises
    ------
    RequestError
        If it cannot be traced, takes more than one input, or the trace would fix the mode of
        a functional dropout or batch norm.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._graph = _traced(model)
        self._nodes = list(self._graph.nodes)
        self._cuts = self._find_cuts()

    @property
    def names(self) -> list[str]:
        """The layers after which the model can be cut, in the order of computation."""
        return list(self._cuts)

    def cut(self, name: str) -> tuple[nn.Module, nn.Module]:
        """Return front and back: ``back(front(x))`` is ``model(x)``.

        Their parameters have the names they have in the model.

        Parameters
        ----------
        name : str
            A layer. The cut is after it, or after the last step of a block of that name.

        Raises
        ------
        RequestError
            If there is no such layer, or more than one value would cross; the message lists
            what there is.
        """
        node = self._node(name)
        for user in node.users:
            layer = self.model.get_submodule(str(user.target)) if _is_layer(user) else None
            # What arrives is a leaf that wants a gradient, which can't be overwritten.
            if getattr(layer, "inplace", False):
                layer.inplace = False  # type: ignore[assignment, union-attr]
        return self._front(node), self._back(node)

    def costs(self, shape: tuple[int, int, int], batch: int = 64) -> list[CutCost]:
        """Return what each cut costs; nothing is computed, so it takes no memory.

        Parameters
        ----------
        shape : tuple of int
            Channels, height and width of an image.
        batch : int
            Examples of a batch, at least 2, for ``memory``.
        """
        ghost = copy.deepcopy(self.model).to("meta")
        meter = _Meter(fx.GraphModule(ghost, self._graph), list(self._cuts.values()))
        measured = meter.measure(torch.empty(batch, *shape, device="meta"))
        everything = sum(p.numel() for p in self.model.parameters())
        return [
            CutCost(
                name,
                self._layer(node),
                tuple(measured[node].shape[1:]),
                measured[node].bytes // batch,
                measured[node].parameters,
                measured[node].parameters / everything,
                measured[node].flops // batch,
                measured[node].saved + measured[node].bytes,
            )
            for name, node in self._cuts.items()
        ]

    # ---------------------------------------------------------------------- internals

    def _find_cuts(self) -> dict[str, fx.Node]:
        """Return the nodes that alone cross to what comes after them, by their best name."""
        last = {user: i for i, user in enumerate(self._nodes)}
        reach, cuts = 0, {}
        for i, node in enumerate(self._nodes[:-1]):
            others = reach
            if node.op != "get_attr":
                reach = max([reach, *(last[user] for user in node.users)])
            # All that came before is used up here, and the rest of the model is still to come.
            if others <= i and node.op != "placeholder" and reach < len(self._nodes) - 1:
                cuts[self._name(node)] = node
        return cuts

    def _name(self, node: fx.Node) -> str:
        """Return a layer's own name; of a step that is no layer, or repeated, its block's."""
        within = [*node.meta.get("nn_module_stack", {})]
        if within and "@" in within[-1]:
            within.pop()
        return within[-1] if within else node.name

    def _layer(self, node: fx.Node) -> str:
        name = self._name(node)
        modules = dict(self.model.named_modules())
        return type(modules[name]).__name__ if name in modules else str(node.name)

    def _node(self, name: str) -> fx.Node:
        if name in self._cuts:
            return self._cuts[name]
        inside: list[fx.Node] = [
            node for node in self._nodes if name in node.meta.get("nn_module_stack", {})
        ]
        if not inside:
            raise unknown("cut", name, self._cuts)
        if inside[-1] not in self._cuts.values():
            raise RequestError(
                f"the model can't be cut after '{name}': more than one value would cross there "
                f"(a branch goes around it), or nothing is left; allowed: {', '.join(self._cuts)}"
            )
        return inside[-1]

    def _front(self, end: fx.Node) -> nn.Module:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in self._nodes[: self._nodes.index(end) + 1]:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[end])
        return _assembled(self.model, graph)

    def _back(self, start: fx.Node) -> nn.Module:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {start: graph.placeholder("smashed")}
        position = self._nodes.index(start)
        for number, node in enumerate(self._nodes):
            if number > position or node.op == "get_attr":
                copies[node] = graph.node_copy(node, copies.__getitem__)
        return _assembled(self.model, graph)


def cutting_cost(
    epsilon: float,
    share: float,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    alpha: float = 2.0,
    beta: float = -1.0,
) -> float:
    """Return the cost of a cut, the objective of section VI of paper 004.

    ``w₁·ε + w₂·Σ Q − w₃·(1 − α/(e^ε + β))``. The last term models the accuracy; 2 and −1 are
    what the authors fitted.

    Parameters
    ----------
    epsilon : float
        Of one activation: what the paper claims, not what holds for a record.
    share : float
        Parameters of the front over those of the model, for Σ Q.
    """
    privacy, resources, accuracy = weights
    return (
        privacy * epsilon + resources * share - accuracy * (1 - alpha / (math.exp(epsilon) + beta))
    )


@dataclass(frozen=True)
class _Measured:
    shape: tuple[int, ...]
    bytes: int
    parameters: int
    flops: int
    saved: int


class _Meter(fx.Interpreter):
    """Runs a graph on the meta device and measures what was needed up to each node."""

    def __init__(self, module: fx.GraphModule, wanted: list[fx.Node]) -> None:
        super().__init__(module)
        # By name, since a GraphModule owns a copy of its graph.
        self._wanted = {node.name: node for node in wanted}
        self._flops = FlopCounterMode(display=False)
        self._seen: list[torch.UntypedStorage] = []
        self._used: dict[str, int] = {}
        self._results: dict[fx.Node, _Measured] = {}

    def measure(self, images: torch.Tensor) -> dict[fx.Node, _Measured]:
        """Return what each wanted node took, for the whole batch."""
        with self._flops, saved_tensors_hooks(self._note, lambda kept: kept):
            self.run(images)
        return self._results

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note the sums so far."""
        result = super().run_node(n)
        if _is_layer(n):
            layer = self.module.get_submodule(str(n.target))
            self._used |= {f"{n.target}.{k}": p.numel() for k, p in layer.named_parameters()}
        if n.name in self._wanted:
            self._results[self._wanted[n.name]] = _Measured(
                tuple(result.shape),
                result.numel() * 4,
                sum(self._used.values()),
                self._flops.get_total_flops(),
                sum(storage.nbytes() for storage in self._seen),
            )
        return result

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) and all(
            storage._cdata != kept._cdata for kept in self._seen
        ):
            self._seen.append(storage)
        return tensor


def _traced(model: nn.Module) -> fx.Graph:
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise RequestError(
            "the model can't be cut: its forward pass depends on more than its layers "
            f"({type(error).__name__}: {error})"
        ) from error
    inputs = sum(node.op == "placeholder" for node in graph.nodes)
    if inputs != 1:
        raise RequestError(f"the model can't be cut: it takes {inputs} inputs, allowed: 1")
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _MODED:
            raise RequestError(
                f"the model can't be cut: '{node.name}' is a function that would stay in the "
                "mode it is in now; write it as a layer (nn.Dropout, nn.BatchNorm2d)"
            )
    return graph


def _assembled(model: nn.Module, graph: fx.Graph) -> nn.Module:
    graph.lint()
    part = fx.GraphModule(model, graph)
    part.train(model.training)
    return part


def _is_layer(node: fx.Node) -> bool:
    return node.op == "call_module"
