"""What a graph keeps for its backward.

Autograd keeps every tensor that the gradient of some operator asks for. Of convolution, norm and activation
it would keep two volumes, what the norm reads and what it gives; the second is one cheap pass away from the
first. So a graph that is trained is planned once: each volume that backward wants is kept, or computed again
from volumes that are kept anyway. The plan runs under autograd's own hooks for saved tensors: no operator
knows of it.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.node import map_aggregate

from volnet import ops
from volnet._extension import _C
from volnet.optimize.graph import argument, is_volume, runs, value
from volnet.optimize.rules.layout import channels_last, with_strides_of
from volnet.optimize.rules.norm_in_training import normalize
from volnet.precision import of_thread

__all__ = ["Plan", "Saving", "last_uses", "plan_saving", "wanted_volumes"]

# One pass over memory, and what is two: they read an eighth of what they write.
CHEAP: dict[Any, int] = {
    ops.relu: 1,
    ops.leaky_relu: 1,
    ops.silu: 1,
    ops.elu: 1,
    ops.cat: 1,
    ops.pad: 1,
    channels_last: 0,  # but for what comes from outside
    with_strides_of: 0,
    operator.add: 1,
    torch.add: 1,
    ops.interpolate: 2,
    ops.conv_transpose3d: 2,
}
MOST_PASSES = 4  # of all operators together that compute a volume again

# Operators whose backward asks for their result.
FROM_RESULT = (ops.relu, ops.sigmoid, ops.softmax)


class Plan:
    """How a graph gets the volumes that backward asks for.

    Attributes:
        again: of those that are computed again, the function and its arguments, nodes among them.
        kept: those that are kept.
        dropped: those of ``again`` that are expensive; they are kept from the moment that backward first asks
            for one until nothing needs it any more.
    """

    def __init__(self) -> None:
        self.again: dict[Node, tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]] = {}
        self.kept: set[Node] = set()
        self.dropped: set[Node] = set()
        self.last_uses: dict[Node, list[Node]] = {}  # the volumes that no later node is computed again from

    def inputs(self, node: Node) -> list[Node]:
        """What ``node`` is computed again from."""
        return _inputs(self.again[node])

    def dropping(self, node: Node) -> None:
        """Has a kept volume computed again, by the operator that made it."""
        self.kept.discard(node)
        self.dropped.add(node)
        self.again[node] = (node.target, node.args, node.kwargs)  # type: ignore[assignment]

    def keeping(self, node: Node) -> None:
        """Takes :meth:`dropping` back."""
        self.dropped.discard(node)
        del self.again[node]
        self.kept.add(node)


def plan_saving(graph: Graph) -> Plan:
    """Every volume that is a few cheap passes away from others that are kept anyway is computed again."""
    wanted = wanted_volumes(graph)
    plan = Plan()
    passes: dict[Node, int] = {}  # of what backward can have
    for node in graph.nodes:
        if node.op == "placeholder" or _is_statistics(node):
            passes[node] = 0
            plan.kept.add(node)
            continue
        if not is_volume(node):
            continue
        recipe, cost = _again(node)
        if recipe is not None:
            needs = _inputs(recipe)
            if all(n in passes for n in needs):
                total = cost + sum(passes[n] for n in needs)
                if total <= MOST_PASSES:
                    plan.again[node] = recipe
                    passes[node] = total
                    continue
        if node in wanted:
            plan.kept.add(node)
            passes[node] = 0
    plan.last_uses = last_uses(graph, plan)
    return plan


def last_uses(graph: Graph, plan: Plan) -> dict[Node, list[Node]]:
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        users = [node, *node.all_input_nodes, *(_inputs(plan.again[node]) if node in plan.again else ())]
        last.update(dict.fromkeys(users, node))
    uses: dict[Node, list[Node]] = {}
    for node, user in last.items():
        uses.setdefault(user, []).append(node)
    return uses


def _is_statistics(node: Node) -> bool:
    return bool(runs(node, operator.getitem) and runs(node.args[0], normalize) and node.args[1] != 0)


def _again(node: Node) -> tuple[Any, int]:
    """The function that computes it, with its arguments, and how many passes that are."""
    if "again" in node.meta:
        function, keywords = node.meta["again"]
        return (function, (), keywords), 1
    if node.op != "call_function" or node.target not in CHEAP:
        return None, 0
    if runs(node, ops.conv_transpose3d) and not _is_upsampling(node):
        return None, 0
    return (node.target, node.args, node.kwargs), CHEAP[node.target]


def _is_upsampling(node: Node) -> bool:
    """Whether its taps do not overlap: a voxel of the result is the product of one voxel of the input."""
    stride = argument(node, "stride")
    kernel = list(value(argument(node, "weight")).shape[2:])
    return bool(kernel == ([stride] * 3 if isinstance(stride, int) else list(stride)))


def _inputs(recipe: Any) -> list[Node]:
    found: list[Node] = []
    map_aggregate(recipe[1:], lambda x: found.append(x) if isinstance(x, Node) else None)
    return found


def wanted_volumes(graph: Graph) -> set[Node]:
    """The volumes that the backward of volnet's operators asks for."""
    wanted: set[Any] = set()
    for node in graph.nodes:
        if runs(node, ops.conv3d, ops.conv_transpose3d):
            wanted |= {argument(node, "input"), node.kwargs.get("skip")}
            if argument(node, "activation") in ("relu", "leaky_relu"):
                wanted.add(node)
        elif runs(node, normalize):
            wanted.add(argument(node, "x"))
            if argument(node, "activation") is not None:
                wanted.add(argument(node, "residual"))
        elif runs(node, *FROM_RESULT):
            wanted.add(node)
        elif runs(node, ops.silu, ops.gelu, ops.elu, ops.prelu, ops.leaky_relu):
            wanted.add(argument(node, "input"))
    return {node for node in wanted if isinstance(node, Node)}


class Kept:
    """A tensor that waits for backward."""

    def __init__(self, tensor: Tensor, compressible: bool) -> None:
        self.tensor = tensor.detach()
        self.version = tensor._version
        self.dtype = tensor.dtype
        self.compressible = compressible

    def save(self, dtype: torch.dtype | None) -> None:
        if self.compressible and dtype is not None and self.dtype == torch.float32:
            self.tensor, self.version, self.compressible = self.tensor.to(dtype), 0, False

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor of shape {list(self.tensor.shape)} that the gradient needs has been modified by "
                f"an in-place operation: it is at version {self.tensor._version}, expected {self.version}"
            )
        return self.tensor.to(self.dtype)


class Again:
    """A tensor that is computed when backward asks for it, as it was computed in forward."""

    def __init__(self, function: Callable[..., Any], arguments: Any, remember: bool) -> None:
        self.function, self.arguments, self.remember = function, arguments, remember
        self.precision = _C.thread_precision()
        self.autocast = torch.is_autocast_enabled("cpu")
        self.autocast_dtype = torch.get_autocast_dtype("cpu")
        self.result: Tensor | None = None

    def save(self, dtype: torch.dtype | None) -> None:
        map_aggregate(self.arguments, lambda x: x.save(dtype) if isinstance(x, (Kept, Again)) else None)

    def get(self) -> Tensor:
        if self.result is not None:
            return self.result
        args, kwargs = map_aggregate(self.arguments, lambda x: x.get() if isinstance(x, (Kept, Again)) else x)
        autocast = torch.autocast("cpu", self.autocast_dtype, self.autocast)
        with torch.no_grad(), autocast, of_thread(self.precision):
            result: Tensor = self.function(*args, **kwargs)
        if self.remember:
            self.result = result
        return result


class Saving(Interpreter):
    """Runs a graph once, keeping what its plan says.

    Args:
        dtype: that volumes of float32 are kept in; None: as they are.
    """

    def __init__(self, module: GraphModule, plan: Plan, dtype: torch.dtype | None) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.plan, self.dtype = plan, dtype
        self.sources: dict[Node, Kept | Again] = {}
        # By memory and shape: autograd shows its hooks another object than the one that an operator returned.
        self.owners: dict[Any, tuple[weakref.ref[Tensor], Kept | Again]] = {}

    def saving_run(self, *args: Any) -> Any:
        """``run``, with everything that autograd saves going through the plan."""
        if not hooks_are_free():
            return self.run(*args)
        with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
            return self.run(*args)

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        if isinstance(result, Tensor):
            source = self._source(node, result)
            if source is not None:
                self.sources[node] = source
                self.owners[_key(result)] = (weakref.ref(result), source)
        for last in self.plan.last_uses.get(node, []):
            self.sources.pop(last, None)
        return result

    def _source(self, node: Node, result: Tensor) -> Kept | Again | None:
        if node in self.plan.again:
            function, args, kwargs = self.plan.again[node]
            arguments = map_aggregate((args, kwargs), self._argument)
            return Again(function, arguments, node in self.plan.dropped)
        if node in self.plan.kept:
            return Kept(result, is_volume(node) and node.op != "placeholder")
        return None

    def _argument(self, x: Any) -> Any:
        return self.sources.get(x, self.env.get(x)) if isinstance(x, Node) else x

    def _pack(self, tensor: Tensor) -> Kept | Again:
        found = self.owners.get(_key(tensor))
        if found is None or found[0]() is None:
            return Kept(tensor, False)
        found[1].save(self.dtype)
        return found[1]


def _unpack(source: Kept | Again) -> Tensor:
    return source.get()


def _key(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def hooks_are_free() -> bool:
    """Whether nobody else, such as torch.utils.checkpoint, decides what is kept."""
    autograd: Any = torch._C._autograd
    return bool(
        autograd._saved_tensors_hooks_is_enabled() and autograd._top_saved_tensors_default_hooks(True) is None
    )
