"""Cutting a model in two: a front for the edge, a back for the cloud, and what each cut costs.

The model is traced with :mod:`torch.fx`, and may be cut after any layer where a single value
crosses, not inside a residual branch or beside one, and no weight is needed on both sides.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from pudica.models.errors import RequestError, unknown

INPUT, OUTPUT = "input", "output"


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
        Bytes of activations that the front keeps for its backward pass on one batch, with
        the activation at the cut.
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
        If it cannot be traced, takes more than one input, or does something else in training
        than in evaluation outside of its layers, which a trace would fix.
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
            ``"input"``: before the first layer, so that the front does nothing.

        Raises
        ------
        RequestError
            If there is no such layer, or more than one value would cross; the message lists
            what there is.
        """
        if name == INPUT and name not in self._cuts:
            return nn.Identity(), self.model
        node = self._node(name)
        return self._front(node), self._back(node)

    def stages(self, first: str, last: str) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Return pre, main and post: ``post(main(pre(x)))`` is ``model(x)``.

        Parameters
        ----------
        first, last : str
            The layers after which ``pre`` and ``main`` end, as of :meth:`cut`. ``first`` may be
            ``"input"``, so that ``pre`` does nothing, ``last`` ``"output"``, so that ``post``
            does nothing.

        Raises
        ------
        RequestError
            As :meth:`cut`; or the first is not before the last.
        """
        start = None if first == INPUT else self._node(first)
        if last == OUTPUT:
            return *self.cut(first), nn.Identity()
        end = self._node(last)
        if start is not None and self._nodes.index(start) >= self._nodes.index(end):
            raise RequestError(
                f"the stages do not meet: '{first}' must come before '{last}'; in their order: "
                f"{', '.join(self._cuts)}"
            )
        pre = nn.Identity() if start is None else self._front(start)
        return pre, self._between(start, end), self._back(end)

    def place_of(self, name: str) -> int:
        """Return how many of :attr:`names` come before a layer that the model can be cut after.

        Parameters
        ----------
        name : str
            As of :meth:`stages`: ``"input"`` and ``"output"`` too.

        Raises
        ------
        RequestError
            As :meth:`cut`.
        """
        if name in (INPUT, OUTPUT) and name not in self._cuts:
            return 0 if name == INPUT else len(self._cuts)
        return [*self._cuts.values()].index(self._node(name))

    def costs(self, shape: tuple[int, int, int], batch: int = 64) -> list[CutCost]:
        """Return what each cut costs. Shapes are followed, nothing is computed.

        Parameters
        ----------
        shape : tuple of int
            Channels, height and width of an image.
        batch : int
            Examples of a batch, at least 2, for ``memory``.
        """
        ghost = copy.deepcopy(self.model).to("meta")  # where shapes are all there is
        # By the nodes' names, since a GraphModule owns a copy of its graph.
        wanted = {node.name: (name, self._layer(node)) for name, node in self._cuts.items()}
        meter = _Meter(fx.GraphModule(ghost, self._graph), wanted)
        return meter.measure(torch.empty(batch, *shape, device="meta"))

    # ---------------------------------------------------------------------- internals

    def _find_cuts(self) -> dict[str, fx.Node]:
        """Return the nodes that alone cross to what comes after them, by their best name."""
        last = {node: i for i, node in enumerate(self._nodes)}
        read = [_tensors(self.model, node) for node in self._nodes]
        last_read = {tensor: i for i, tensors in enumerate(read) for tensor in tensors}
        value = weight = 0  # until where what was computed, and read, so far is needed
        cuts: dict[str, fx.Node] = {}
        for i, node in enumerate(self._nodes[:-1]):
            others = value
            if node.op != "get_attr":
                value = max([value, *(last[user] for user in node.users)])
            weight = max([weight, *(last_read[tensor] for tensor in read[i])])
            # All that came before is used up here, and the rest of the model is still to come.
            alone = others <= i and node.op != "placeholder" and value < len(self._nodes) - 1
            if alone and weight <= i and not _is_taken_apart(node):
                cuts.pop(self._name(node), None)
                cuts[self._name(node)] = node
        return cuts

    def _name(self, node: fx.Node) -> str:
        """Return a layer's own name; of a step that is no layer, or repeated, its block's."""
        within = [*node.meta.get("nn_module_stack", {})]
        if len(within) > 1 and "@" in within[-1]:
            within.pop()
        return within[-1] if within else node.name

    def _layer(self, node: fx.Node) -> str:
        name = self._name(node).partition("@")[0]
        modules = dict(self.model.named_modules())
        return type(modules[name]).__name__ if name in modules else str(node.name)

    def _node(self, name: str) -> fx.Node:
        if name in self._cuts:
            return self._cuts[name]
        inside: list[fx.Node] = [
            node for node in self._nodes if name in node.meta.get("nn_module_stack", {})
        ]
        if not inside:
            raise unknown("cut", name, [INPUT, *self._cuts])
        if inside[-1] not in self._cuts.values():
            raise RequestError(
                f"the model can't be cut after '{name}': more than one value would cross there "
                "(a branch goes around it), a weight is needed on both sides, or nothing is left; "
                f"allowed: {', '.join(self._cuts)}"
            )
        return inside[-1]

    def _front(self, end: fx.Node) -> nn.Module:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in self._part(self._nodes[: self._nodes.index(end) + 1], end):
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[end])
        return _assembled(self.model, graph)

    def _between(self, start: fx.Node | None, end: fx.Node) -> nn.Module:
        if start is None:
            return self._front(end)
        graph = fx.Graph()
        copies = self._arrived(graph, start)
        first, last = self._nodes.index(start), self._nodes.index(end)
        inside = [
            node
            for place, node in enumerate(self._nodes[: last + 1])
            if place > first or node.op == "get_attr"
        ]
        for node in self._part(inside, end):
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[end])
        return _assembled(self.model, graph)

    def _back(self, start: fx.Node) -> nn.Module:
        graph = fx.Graph()
        copies = self._arrived(graph, start)
        position = self._nodes.index(start)
        late = [n for i, n in enumerate(self._nodes) if i > position or n.op == "get_attr"]
        for node in self._part(late, start):
            copies[node] = graph.node_copy(node, copies.__getitem__)
        return _assembled(self.model, graph)

    @staticmethod
    def _arrived(graph: fx.Graph, start: fx.Node) -> dict[fx.Node, fx.Node]:
        """Begin a graph with what arrives in place of a node's value."""
        # It is a leaf that wants a gradient, which no layer may overwrite.
        return {start: graph.call_method("clone", (graph.placeholder("smashed"),))}

    @staticmethod
    def _part(nodes: list[fx.Node], end: fx.Node) -> list[fx.Node]:
        """Leave out weights that are read on the other side only."""
        within = set(nodes)
        return [n for n in nodes if n.op != "get_attr" or n is end or within & set(n.users)]


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


def flops(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the operations of a forward pass on one example; nothing is computed.

    A multiplication and an addition are two; only those of convolutions and matrix products count.

    Parameters
    ----------
    shape : tuple of int
        Of one example.
    """
    ghost = copy.deepcopy(module).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        ghost(torch.empty(1, *shape, device="meta"))
    return int(counter.get_total_flops())


class _Meter(fx.Interpreter):
    """Runs a graph on the meta device and sums up what was needed until each cut.

    Parameters
    ----------
    module : GraphModule
        On the meta device.
    wanted : dict of str to (str, str)
        The cut's name and its layer's type, by the node's name.
    """

    def __init__(self, module: fx.GraphModule, wanted: dict[str, tuple[str, str]]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self._flops = FlopCounterMode(display=False)
        self._weights = {_storage(t) for t in (*module.parameters(), *module.buffers())}
        self._everything = sum(p.numel() for p in module.parameters())
        self._saved: dict[int, torch.UntypedStorage] = {}
        self._used: dict[int, int] = {}
        self._costs: list[CutCost] = []

    def measure(self, images: torch.Tensor) -> list[CutCost]:
        """Return what each cut costs, in the order of computation."""
        with self._flops, saved_tensors_hooks(self._note, lambda kept: kept):
            self.run(images)
        return self._costs

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note the sums so far."""
        result = super().run_node(n)
        self._used |= _tensors(self.module, n)
        if n.name in self._wanted:
            self._costs.append(self._cost(*self._wanted[n.name], result))
        return result

    def _cost(self, name: str, layer: str, activation: torch.Tensor) -> CutCost:
        batch, *shape = activation.shape
        size = activation.numel() * 4
        saved = sum(storage.nbytes() for storage in self._saved.values())
        parameters = sum(self._used.values())
        return CutCost(
            name,
            layer,
            tuple(shape),
            size // batch,
            parameters,
            parameters / self._everything,
            self._flops.get_total_flops() // batch,
            saved + (0 if _storage(activation) in self._saved else size),
        )

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in self._weights:
            # Kept, so that no later one gets its number.
            self._saved[_storage(tensor)] = tensor.untyped_storage()
        return tensor


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(model: nn.Module, node: fx.Node) -> dict[int, int]:
    """Return what a node reads of the model: elements by identity, 0 for what is not trained."""
    places = [str(part.target) for part in node.all_input_nodes if part.op == "get_attr"]
    found = [operator.attrgetter(place)(model) for place in places]
    if node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        found += [*layer.parameters(), *layer.buffers()]
    return {id(t): t.numel() if isinstance(t, nn.Parameter) else 0 for t in found}


def _is_taken_apart(node: fx.Node) -> bool:
    """Tell whether a node's value is several tensors."""
    return any(
        user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users
    )


def _traced(model: nn.Module) -> fx.Graph:
    graph, other = (_trace(model, training) for training in (model.training, not model.training))
    if graph.python_code("self").src != other.python_code("self").src:
        raise RequestError(
            "the model can't be cut: outside of its layers it does something else in training "
            "than in evaluation; write that as a layer (nn.Dropout, nn.BatchNorm2d)"
        )
    inputs = sum(node.op == "placeholder" for node in graph.nodes)
    if inputs != 1:
        raise RequestError(f"the model can't be cut: it takes {inputs} inputs, allowed: 1")
    return graph


def _trace(model: nn.Module, training: bool) -> fx.Graph:
    before = {layer: layer.training for layer in model.modules()}
    try:
        return fx.Tracer().trace(model.train(training))
    except Exception as error:
        raise RequestError(
            "the model can't be cut: its forward pass depends on more than its layers "
            f"({type(error).__name__}: {error})"
        ) from error
    finally:
        for layer, mode in before.items():
            layer.training = mode


def _assembled(model: nn.Module, graph: fx.Graph) -> nn.Module:
    graph.lint()
    part, shared = fx.GraphModule(model, graph), set(model.modules())
    for layer in part.modules():
        if layer not in shared:  # a block of the trace's own
            layer.training = model.training
    return part
