"""Split a model into a front for the edge and a back for the cloud, and cost each cut.

The model is traced with :mod:`torch.fx`. It can be cut after any layer where a single value
crosses (so not inside or beside a residual branch) and no weight is needed on both sides.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from pudica.models.errors import RequestError
from pudica.models.trial import keep_modes

INPUT, OUTPUT = "input", "output"


class CutCost(NamedTuple):
    """What an edge device pays when the model is cut after one layer."""

    name: str
    layer: str  # its type
    shape: tuple[int, ...]  # of one example's activation at the cut
    bytes: int  # of that activation, as float32
    parameters: int  # of the front
    share: float  # of the model's parameters
    flops: int  # of the front's forward pass on one example; a multiply-add counts as two
    memory: int  # bytes kept for the backward pass on one batch, with the activation at the cut


class Cutter:
    """A traced model and the places where it can be cut.

    It maps images (B, C, H, W) to logits. The parts that :meth:`cut` returns share its layers.

    Raises RequestError if the model cannot be traced, takes more than one input, or behaves
    differently in training and evaluation outside its layers, which a trace would hard-code.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._graph = _trace_model(model)
        self._nodes = list(self._graph.nodes)
        self._cuts = self._find_cuts()

    @property
    def names(self) -> list[str]:
        """The layers after which the model can be cut, in the order of computation."""
        return list(self._cuts)

    def cut(self, name: str) -> tuple[nn.Module, nn.Module]:
        """Return the front and the back: ``back(front(x))`` is ``model(x)``.

        Their parameters keep the names they have in the model. The cut comes after the named layer,
        or a block's last step; ``"input"`` cuts before the first, so the front does nothing.

        Raises RequestError if there is no such layer, or more than one value would cross; the
        message lists the possible cuts.
        """
        if name == INPUT and name not in self._cuts:
            return nn.Identity(), self.model
        node = self._node(name)
        return self._part(None, node), self._part(node, None)

    def cut_stages(self, first: str, last: str) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Return pre, main and post: ``post(main(pre(x)))`` is ``model(x)``.

        ``pre`` and ``main`` end after the first and the last layer, as in :meth:`cut`. With
        ``"input"`` as ``first``, ``pre`` does nothing; with ``"output"`` as ``last``, ``post``.
        Raises as :meth:`cut`, and if the first is not before the last.
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
        pre = nn.Identity() if start is None else self._part(None, start)
        return pre, self._part(start, end), self._part(end, None)

    def index_of(self, name: str) -> int:
        """Return how many cuts of :attr:`names` come before this one, named as for the stages."""
        if name in (INPUT, OUTPUT) and name not in self._cuts:
            return 0 if name == INPUT else len(self._cuts)
        return [*self._cuts.values()].index(self._node(name))

    def compute_costs(self, shape: tuple[int, int, int], batch: int = 64) -> list[CutCost]:
        """Return the cost of each cut for images (C, H, W), from shapes alone.

        ``memory`` is that of a batch of ``batch`` examples, at least 2.
        """
        ghost = copy.deepcopy(self.model).to("meta")  # which tracks shapes only
        # Keyed by the nodes' names, since a GraphModule owns a copy of its graph.
        wanted = {node.name: (name, self._layer(node)) for name, node in self._cuts.items()}
        meter = _CostMeter(fx.GraphModule(ghost, self._graph), wanted)
        return meter.measure(torch.empty(batch, *shape, device="meta"))

    def _find_cuts(self) -> dict[str, fx.Node]:
        """Return the nodes whose value alone crosses to the rest of the model, by name."""
        last = {node: i for i, node in enumerate(self._nodes)}
        read = [_tensors_read(self.model, node) for node in self._nodes]
        last_read = {tensor: i for i, tensors in enumerate(read) for tensor in tensors}
        value = weight = 0  # the last places where values and weights seen so far are needed
        cuts: dict[str, fx.Node] = {}
        for i, node in enumerate(self._nodes[:-1]):
            others = value
            if node.op != "get_attr":
                value = max([value, *(last[user] for user in node.users)])
            weight = max([weight, *(last_read[tensor] for tensor in read[i])])
            # Everything before is used up here, and part of the model is still to come.
            alone = others <= i and node.op != "placeholder" and value < len(self._nodes) - 1
            is_unpacked = any(
                user.target is operator.getitem and isinstance(user.args[1], int)
                for user in node.users
            )
            if alone and weight <= i and not is_unpacked:
                cuts.pop(self._name(node), None)
                cuts[self._name(node)] = node
        return cuts

    def _name(self, node: fx.Node) -> str:
        """Return a layer's name; for a step that is no layer or is repeated, its block's."""
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
        inside = [node for node in self._nodes if name in node.meta.get("nn_module_stack", {})]
        if not inside:
            layers = (f"{cut} ({self._layer(node)})" for cut, node in self._cuts.items())
            raise RequestError(
                f"unknown cut '{name}'. Allowed, after these layers: {', '.join(layers)}; or "
                f"'{INPUT}', before all"
            )
        if inside[-1] not in self._cuts.values():
            raise RequestError(
                f"the model can't be cut after '{name}': more than one value would cross there "
                "(a branch goes around it), a weight is needed on both sides, or nothing is left; "
                f"allowed: {', '.join(self._cuts)}"
            )
        return inside[-1]  # type: ignore[no-any-return]

    def _part(self, start: fx.Node | None, end: fx.Node | None) -> nn.Module:
        """Return the part after ``start`` up to and including ``end``; None: from or to the end."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        first, last = 0, len(self._nodes)
        if start is not None:
            # The input is a leaf that requires a gradient, so no layer may change it in place.
            copies[start] = graph.call_method("clone", (graph.placeholder("smashed"),))
            first = self._nodes.index(start) + 1
        if end is not None:
            last = self._nodes.index(end) + 1
        weights = [node for node in self._nodes[:first] if node.op == "get_attr"]
        inside = weights + self._nodes[first:last]
        for node in inside:
            # A weight that only another part reads is left out.
            if node.op != "get_attr" or node is end or not node.users.keys().isdisjoint(inside):
                copies[node] = graph.node_copy(node, copies.__getitem__)
        if end is not None:
            graph.output(copies[end])
        graph.lint()
        part, shared = fx.GraphModule(self.model, graph), set(self.model.modules())
        for layer in part.modules():
            if layer not in shared:  # a block that the trace created
                layer.training = self.model.training
        return part


def cutting_cost(
    epsilon: float,
    share: float,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    alpha: float = 2.0,
    beta: float = -1.0,
) -> float:
    """Return the cost of a cut: the objective in section VI of paper 004.

    ``w₁·ε + w₂·Σ Q − w₃·(1 − α/(e^ε + β))``, with ε of one activation as the paper claims it, not
    what holds for a record, and Σ Q the front's share of the parameters. The last term models the
    accuracy; the authors fitted α = 2 and β = −1.
    """
    privacy, resources, accuracy = weights
    return (
        privacy * epsilon + resources * share - accuracy * (1 - alpha / (math.exp(epsilon) + beta))
    )


def count_flops(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the operations of a forward pass on one example of this shape, without computing it.

    A multiply-add counts as two; only convolutions and matrix products are counted.
    """
    ghost = copy.deepcopy(module).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        ghost(torch.empty(1, *shape, device="meta"))
    return int(counter.get_total_flops())


class _CostMeter(fx.Interpreter):
    """Runs a graph on the meta device and adds up the costs until each cut.

    ``wanted`` holds the cut's name and its layer's type, keyed by the node's name.
    """

    def __init__(self, module: fx.GraphModule, wanted: dict[str, tuple[str, str]]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self._flops = FlopCounterMode(display=False)
        self._weights = {_storage_id(t) for t in (*module.parameters(), *module.buffers())}
        self._everything = sum(p.numel() for p in module.parameters())
        self._saved: dict[int, torch.UntypedStorage] = {}
        self._used: dict[int, int] = {}
        self._costs: list[CutCost] = []

    def measure(self, images: torch.Tensor) -> list[CutCost]:
        """Return the cost of each cut, in the order of computation."""
        with self._flops, saved_tensors_hooks(self._record_saved, lambda kept: kept):
            self.run(images)
        return self._costs

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and record the totals so far."""
        result = super().run_node(n)
        self._used |= _tensors_read(self.module, n)
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
            saved + (0 if _storage_id(activation) in self._saved else size),
        )

    def _record_saved(self, tensor: torch.Tensor) -> torch.Tensor:
        if _storage_id(tensor) not in self._weights:
            # Kept alive, so that no later storage gets the same id.
            self._saved[_storage_id(tensor)] = tensor.untyped_storage()
        return tensor


def _storage_id(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors_read(model: nn.Module, node: fx.Node) -> dict[int, int]:
    """Return the sizes of the tensors a node reads, by identity; 0 for untrained ones."""
    paths = [str(part.target) for part in node.all_input_nodes if part.op == "get_attr"]
    tensors = [operator.attrgetter(path)(model) for path in paths]
    if node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        tensors += [*layer.parameters(), *layer.buffers()]
    return {id(t): t.numel() if isinstance(t, nn.Parameter) else 0 for t in tensors}


def _trace_model(model: nn.Module) -> fx.Graph:
    graph, other = (
        _trace_in_mode(model, training) for training in (model.training, not model.training)
    )
    if graph.python_code("self").src != other.python_code("self").src:
        raise RequestError(
            "the model can't be cut: outside of its layers it does something else in training "
            "than in evaluation; write that as a layer (nn.Dropout, nn.BatchNorm2d)"
        )
    inputs = sum(node.op == "placeholder" for node in graph.nodes)
    if inputs != 1:
        raise RequestError(f"the model can't be cut: it takes {inputs} inputs, allowed: 1")
    return graph


def _trace_in_mode(model: nn.Module, training: bool) -> fx.Graph:
    try:
        with keep_modes(model):
            return fx.Tracer().trace(model.train(training))
    except Exception as error:
        raise RequestError(
            "the model can't be cut: its forward pass depends on more than its layers "
            f"({type(error).__name__}: {error})"
        ) from error
