"""One volume split into slabs along D over ranks."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from volnet import ops
from volnet.ops.norm import update_running
from volnet.optimize.graph import argument, runs, value
from volnet.optimize.optimize import Optimized
from volnet.optimize.rules import FIRST, RULES
from volnet.optimize.rules.batch_norm import fold_batch_norm
from volnet.optimize.rules.functional import changes_in_place
from volnet.optimize.rules.norm_in_training import keep_statistics
from volnet.optimize.rules.norm_of_convolution import normalize_on_load, use_statistics
from volnet.optimize.tracing import trace_through_jit_isinstance
from volnet.optimize.whole.local import Local, local, shape_of
from volnet.precision import check_precision, of_thread
from volnet.train.distributed.exchange import (
    Group,
    Range,
    Traffic,
    exchange,
    gathered,
    scale_gradient,
    sum_gradient_too,
    sum_over_ranks,
)
from volnet.train.distributed.norm import spatial_norm

__all__ = ["SpatialParallel", "spatial_parallel"]

NORMS = (ops.batch_norm, ops.group_norm, ops.instance_norm)
# Those that take the statistics of a norm from the convolution before it know but one slab of it.
REWRITES = [
    rule
    for rule in (*FIRST, *RULES)
    if rule not in (fold_batch_norm, use_statistics, keep_statistics, normalize_on_load)
]
trace_through_jit_isinstance()


def spatial_parallel(
    model: nn.Module, group: dist.ProcessGroup | None = None, *, precision: str = "high"
) -> SpatialParallel:
    """A network whose input volume is split into slabs along D, one a rank.

    Every rank calls it with its own slab and gets its own slab of every result; what a layer needs of other
    ranks' planes comes from them, forward and backward, and norms have the statistics of the whole volume.
    The result, and with a loss over all voxels the sum of the ranks' gradients, are those of one process.

    Args:
        model: the same weights on all ranks (:func:`volnet.train.distributed.data_parallel` sees to that).
            Dynamo has to capture it as one graph. Convolutions, transposed convolutions, max and mean
            pooling, interpolation, padding, batch, instance and group norms, pooling to one voxel, and
            everything that works voxel by voxel can be split. May come from :func:`volnet.optimize`; it runs
            on volnet's operators in any case.
        group: the ranks that share a volume, in the order of their slabs; all by default.
        precision: of the convolutions, as in :func:`volnet.optimize`.

    Returns:
        A module with ``split``, ``gather``, ``owned`` and ``traffic``; ``module`` is the network.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialised.
        ValueError: ``precision`` is another.
        NotImplementedError: in the first call, a layer cannot be split; it is named.

    >>> from volnet.train.distributed import single_process
    >>> model, x = torch.nn.Conv3d(1, 2, 3, padding=1), torch.randn(1, 1, 8, 4, 4)
    >>> with single_process(), torch.no_grad():
    ...     parallel = spatial_parallel(model)
    ...     y = parallel.gather(parallel(parallel.split(x)))
    >>> torch.allclose(y, model(x), atol=1e-4)
    True
    """
    return SpatialParallel(model, group, precision)


@dataclass
class _Call:
    slabs: dict[int, Tensor]  # by the storage of the tensor that stands for the whole volume
    cuts: tuple[int, ...]  # [0, ..., D]: rank r has the planes [cuts[r], cuts[r + 1])


_current: ContextVar[_Call] = ContextVar("volnet_spatial_call")


class SpatialParallel(nn.Module):
    """See :func:`spatial_parallel`."""

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None, precision: str) -> None:
        super().__init__()
        if not dist.is_initialized():
            raise RuntimeError(
                "spatial_parallel: torch.distributed is not initialised; call "
                "volnet.train.distributed.init() under torchrun"
            )
        if isinstance(model, Optimized):
            precision = model.__dict__["_volnet_backend"].precision or precision
            model = model._original()
        self.module = model
        self.group = Group(group)
        self._cuts: tuple[int, ...] = ()
        backend = partial(_compile, self.group, check_precision(precision))
        self._compiled = torch.compile(_run, backend=backend, fullgraph=True, dynamic=False)

    @property
    def traffic(self) -> Traffic:
        """Bytes of planes that this rank has sent so far."""
        return self.group.traffic

    def split(self, x: Tensor, multiple: int = 32) -> Tensor:
        """This rank's planes of a whole volume [N, C, D, H, W], a view.

        Slabs are as even as multiples of ``multiple`` allow, or of the largest power of two below it that
        leaves every rank some: with the network's total stride they are multiples at every level.
        """
        lo, hi = self.planes(x.shape[2], multiple)
        return x[:, :, lo:hi]

    def planes(self, depth: int, multiple: int = 32) -> Range:
        """[lo, hi) of the ``depth`` planes of a volume that :meth:`split` gives to this rank."""
        ranks = self.group.size
        if depth < ranks:
            raise ValueError(f"split: {depth} planes cannot be split over {ranks} ranks")
        while depth // multiple < ranks:
            multiple //= 2
        units = depth // multiple
        cuts = [units * r // ranks * multiple for r in range(ranks)] + [depth]
        return cuts[self.group.rank], cuts[self.group.rank + 1]

    def owned(self, depth: int) -> Range:
        """[lo, hi) of the ``depth`` planes of a result of the last call that are this rank's."""
        return _owned(self._cuts, depth)[self.group.rank]

    def gather(self, slab: Tensor) -> Tensor:
        """The whole volume on every rank, without a gradient: for tests and small volumes."""
        sizes = gathered(torch.tensor([slab.shape[2]]), self.group).flatten().tolist()
        ends = torch.tensor(sizes).cumsum(0).tolist()
        owned = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        return exchange(slab.detach(), owned, [(0, ends[-1])] * self.group.size, self.group)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all voxels of all ranks of a loss per voxel, the same on all ranks."""
        count = gathered(torch.tensor([float(values.numel())], dtype=torch.float64), self.group).sum()
        return sum_over_ranks(values.sum(), self.group) / float(count)

    def forward(self, *slabs: Tensor) -> Any:
        """Slabs [N, C, planes, H, W] of the model's inputs to slabs of its results. A result that is no
        volume is the same on all ranks; a loss of it is computed by every rank."""
        volumes = [x for x in slabs if isinstance(x, Tensor) and x.dim() == 5]
        if not volumes:
            raise ValueError("spatial_parallel: takes slabs [N, C, planes, H, W], got none")
        depths = torch.tensor([x.shape[2] for x in volumes])
        sizes = gathered(depths, self.group)  # [ranks, volumes]
        totals = sizes.sum(0).tolist()
        cuts = tuple([0, *sizes[:, 0].cumsum(0).tolist()])
        for i, total in enumerate(totals):
            spans = [hi - lo for lo, hi in _owned(cuts, total)]
            if spans != sizes[:, i].tolist():
                raise ValueError(
                    f"spatial_parallel: input {i} has {sizes[:, i].tolist()} planes on the ranks, but "
                    f"{spans} go with the {sizes[:, 0].tolist()} of input 0"
                )
        # Memory that nobody touches: Dynamo looks at shapes.
        wholes, held = [], {}
        left = iter(totals)
        for x in slabs:
            if isinstance(x, Tensor) and x.dim() == 5:
                whole = x.new_empty(*x.shape[:2], next(left), *x.shape[3:]).requires_grad_(x.requires_grad)
                held[whole.untyped_storage().data_ptr()] = x
                wholes.append(whole)
            else:
                wholes.append(x)
        self._cuts = cuts
        token = _current.set(_Call(held, cuts))
        try:
            with torch._dynamo.config.patch(
                skip_nnmodule_hook_guards=False, recompile_limit=256, optimize_ddp=False
            ):
                return self._compiled(self.module, *wholes)
        finally:
            _current.reset(token)


def _run(model: nn.Module, *inputs: Any) -> Any:
    return model(*inputs)


def _owned(cuts: Sequence[int], depth: int) -> tuple[Range, ...]:
    """The planes of every rank of a volume somewhere in the network: those at the same places."""
    whole = cuts[-1]
    ends = [(2 * cut * depth + whole) // (2 * whole) for cut in cuts]
    return tuple(pairwise(ends))


def _compile(group: Group, precision: int, module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """What Dynamo calls for the graph of the network."""
    graph = module.graph
    for rule in REWRITES:
        rule(graph)
        if rule is FIRST[-1] and changes_in_place(graph):
            raise NotImplementedError("spatial_parallel: the network changes volumes in place")
    graph.lint()
    module.recompile()
    split: dict[tuple[bool, ...], _Split] = {}

    def run(*args: Any) -> Any:
        call = _current.get()
        slabs = [
            call.slabs.get(a.untyped_storage().data_ptr()) if isinstance(a, Tensor) else None for a in args
        ]
        key = tuple(slab is not None for slab in slabs)
        if key not in split:
            split[key] = _Split(module, key, group)
        with of_thread(precision):
            given = [a if slab is None else slab for a, slab in zip(args, slabs, strict=True)]
            return split[key].run(given, call.cuts)

    return run


class _Split:
    """A graph of which some placeholders are slabs, and so everything computed from them."""

    def __init__(self, module: GraphModule, is_slab: Sequence[bool], group: Group) -> None:
        self.module, self.group = module, group
        self.slabs: dict[Node, Local | None] = {}  # None: given, or a norm
        placeholders = module.graph.find_nodes(op="placeholder")
        self.placeholders = list(placeholders)
        for node, slab in zip(placeholders, is_slab, strict=True):
            if slab:
                self.slabs[node] = None
        self.last_read: dict[Node, list[Node]] = {}
        seen: set[Node] = set()
        for node in reversed(module.graph.nodes):
            self.last_read[node] = [n for n in node.all_input_nodes if n not in seen]
            seen.update(node.all_input_nodes)
        for node in module.graph.nodes:
            if node.op not in ("placeholder", "get_attr", "output"):
                self._sort(node)

    def _sort(self, node: Node) -> None:
        if not any(source in self.slabs for source in node.all_input_nodes):
            return
        if _normalizes(node) or _pools_all(node) or _averages(node):
            if _normalizes(node):
                self.slabs[node] = None
            return
        if not isinstance(value(node), Tensor):
            raise NotImplementedError(f"spatial_parallel: {_name(node)} asks for values of a whole volume")
        volume = local(node, lambda n: n is node or n in self.slabs)
        if volume is None or any(source not in self.slabs for source in volume.sources):
            raise NotImplementedError(
                f"spatial_parallel: {_name(node)} of shape {tuple(value(node).shape)} cannot be split along D"
            )
        self.slabs[node] = volume

    def run(self, args: Sequence[Any], cuts: Sequence[int]) -> Any:
        values: dict[Node, Any] = dict(zip(self.placeholders, args, strict=True))

        def get(node: Any) -> Any:
            return values[node] if isinstance(node, Node) else node

        for node in self.module.graph.nodes:
            if node.op == "get_attr":
                values[node] = operator.attrgetter(str(node.target))(self.module)
            elif node.op == "output":
                return map_arg(node.args[0], lambda n: self._result(n, values[n]))
            elif node.op != "placeholder":
                volume = self.slabs.get(node)
                if volume is not None:
                    values[node] = self._local(volume, cuts, get)
                elif node in self.slabs:
                    values[node] = self._norm(node, get)
                elif any(source in self.slabs for source in node.all_input_nodes):
                    values[node] = self._average(node, cuts, get)
                else:
                    values[node] = _call(self.module, node, get)
            for read in self.last_read[node]:
                del values[read]
        raise AssertionError("a graph has an output")

    def _result(self, node: Node, x: Any) -> Any:
        if node in self.slabs or not isinstance(x, Tensor) or not x.requires_grad:
            return x
        return scale_gradient(x, 1.0 / self.group.size)  # every rank computes the same loss of it

    def _local(self, volume: Local, cuts: Sequence[int], get: Callable[[Any], Any]) -> Tensor:
        owned = _owned(cuts, volume.depth)
        planes = []
        spans = [volume.needs(a, b) if a < b else None for a, b in owned]
        for i, source in enumerate(volume.sources):
            held = _owned(cuts, shape_of(source)[2])
            needed = [(held[rank][0],) * 2 if span is None else span[i] for rank, span in enumerate(spans)]
            planes.append(exchange(get(source), held, needed, self.group))
        a, b = owned[self.group.rank]
        if a < b:
            return volume.run(a, b, planes, get)
        # No planes, but a place in the graph of gradients: others may have planes of ours.
        n, c, _, h, w = volume.shape
        empty = planes[0].new_empty(n, c, 0, h, w, dtype=volume.dtype)
        for x in [*planes, *(get(node) for node in volume.whole)]:
            if isinstance(x, Tensor) and x.requires_grad:
                empty = empty + x.sum().to(volume.dtype)
        return empty

    def _norm(self, node: Node, get: Callable[[Any], Any]) -> Tensor:
        x = get(argument(node, "input"))
        per_image = node.target is not ops.batch_norm
        groups = argument(node, "num_groups") if node.target is ops.group_norm else x.shape[1]
        y, mean, variance, count = spatial_norm(
            x,
            get(argument(node, "weight")),
            get(argument(node, "bias")),
            get(argument(node, "residual")),
            groups,
            per_image,
            float(argument(node, "eps")),
            argument(node, "activation") or "none",
            float(argument(node, "negative_slope")),
            self.group,
        )
        if node.target is not ops.group_norm and argument(node, "running_mean") is not None:
            running = get(argument(node, "running_mean")), get(argument(node, "running_var"))
            update_running(*running, mean, variance, float(get(argument(node, "momentum"))), count)
        return y

    def _average(self, node: Node, cuts: Sequence[int], get: Callable[[Any], Any]) -> Tensor:
        """A mean over all of D, in float64 between ranks."""
        (source,) = [n for n in node.all_input_nodes if n in self.slabs]
        x, depth = get(source), shape_of(source)[2]
        if x.shape[2] > 0:
            y = _call(self.module, node, get).double() * x.shape[2]
        else:
            y = x.sum().double() + torch.zeros(shape_of(node), dtype=torch.float64)
        return (sum_gradient_too(y, self.group) / depth).to(value(node).dtype)


def _call(module: GraphModule, node: Node, get: Callable[[Any], Any]) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), get)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _normalizes(node: Node) -> bool:
    """With the statistics of its input."""
    if not runs(node, *NORMS) or value(node).dim() != 5:
        return False
    if node.target is ops.batch_norm:
        return bool(argument(node, "training"))
    return node.target is ops.group_norm or bool(argument(node, "use_input_stats"))


def _pools_all(node: Node) -> bool:
    return runs(node, ops.adaptive_avg_pool3d) and value(node).shape[2] == 1


def _averages(node: Node) -> bool:
    """``x.mean(dims)`` with D among them."""
    if node.target not in (torch.mean, "mean") or not isinstance(value(node.args[0]), Tensor):
        return False
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return value(node.args[0]).dim() == 5 and isinstance(dims, (tuple, list)) and 2 in [d % 5 for d in dims]


def _name(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target))
