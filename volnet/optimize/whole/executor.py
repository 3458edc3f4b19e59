"""Runs a graph by its plan."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from volnet import memory
from volnet._extension import _C
from volnet.optimize.graph import value
from volnet.optimize.whole.local import Convolution, Range, shape_of
from volnet.optimize.whole.planner import Pass, Plan, cuts, ranges, with_convolution
from volnet.optimize.whole.statistics import Gathered, Moments
from volnet.optimize.whole.storage import Destination, Store, planes

__all__ = ["execute"]


def execute(
    plan: Plan, args: Sequence[Any], destination: Destination | None, progress: Callable[[float], None]
) -> Any:
    """What the graph returns for ``args``. The network's result goes to ``destination``, if there is one."""
    return _Run(plan, args, destination, progress).run()


class _Run:
    def __init__(
        self,
        plan: Plan,
        args: Sequence[Any],
        destination: Destination | None,
        progress: Callable[[float], None],
    ) -> None:
        self.plan, self.program, self.schedule = plan, plan.program, plan.schedule
        self.destination, self.progress = destination, progress
        self.values: dict[Node, Any] = {}
        self.stores: dict[Node, Store] = {}
        self.seconds = 0.0
        self.others = memory.stats()["in_use"]  # of the pool's memory
        arguments = iter(args)
        for node in self.program.given:
            if node.op == "placeholder":
                self.values[node] = next(arguments)
            else:
                self.values[node] = operator.attrgetter(str(node.target))(self.program.module)

    def run(self) -> Any:
        try:
            return self._run()
        finally:
            _C.memory_set_soft_limit(0)

    def _run(self) -> Any:
        for i, one in enumerate(self.plan.passes):
            for node in one.whole:
                self.values[node] = self._call(node)
                self._forget((i, 0, self.program.order[node]))
            self._forget((i, 0, math.inf))
            if one.targets:
                self._sweep(one)
                self._forget((i, 1, 0))
        if self.destination is not None:
            for node in self.program.results:
                if self.program.finished(node) and node not in self.program.local:
                    self.destination.write_all(self.values[node])
        return map_arg(self.program.output.args[0], self.get)

    def get(self, node: Any) -> Any:
        """The value of a node as a whole."""
        if not isinstance(node, Node):
            return node
        if node in self.stores:
            return self.stores[node].volume
        return self.values[node]

    def _call(self, node: Node) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), self.get)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            return self.program.module.get_submodule(str(node.target))(*args, **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _forget(self, now: tuple[int, int, float]) -> None:
        for kept in (self.values, self.stores):
            for node in [n for n in kept if self.schedule.last_read.get(n, (0, 0, 0)) <= now]:
                del kept[node]

    def _limit_pool(self, wanted: dict[Node, Range]) -> None:
        """What the pool may keep for the next slab beside what is stored when this one ends."""
        stored = sum(store.written - store.released for store in self.stores.values())
        for node, (lo, hi) in wanted.items():
            if node in self.program.local:
                stored += (hi - lo) * self.program.local[node].plane_bytes
        _C.memory_set_soft_limit(max(self.plan.budget - stored, 1) + self.others)

    def _sweep(self, one: Pass) -> None:
        gathered = {n: self.program.gathered[n][1](n) for n in one.targets if n in self.program.gathered}
        for slab in range(one.slabs):
            self._slab(one, slab, gathered)
            self.seconds += one.seconds / one.slabs
            self.progress(min(self.seconds / max(self.plan.seconds, 1e-9), 1.0))
        for node, statistics in gathered.items():
            self.values[node] = statistics.result()

    def _slab(self, one: Pass, slab: int, gathered: dict[Node, Gathered]) -> None:
        program = self.program
        wanted = cuts(program, one, slab)
        needed = ranges(program, one, wanted)
        for node in one.last:
            if node in self.stores and node in needed:
                self.stores[node].release(needed[node][0])
        if self.plan.in_slabs:
            self._limit_pool(wanted)
        left: dict[Node, int] = {}
        for node in one.nodes:
            for source in _sources(program, node):
                left[source] = left.get(source, 0) + 1
        live: dict[Node, Tensor] = {}  # the planes `needed` of it

        def part(node: Node, lo: int, hi: int) -> Tensor:
            if node not in live:
                live[node] = self._load(node, *needed[node])
            first = needed[node][0]
            return planes(live[node], lo - first, hi - first)

        for node in one.nodes:
            if node in gathered:
                (source,) = _sources(program, node)
                lo, hi = wanted[node]
                if lo < hi and not with_convolution(program, node, needed, wanted):
                    gathered[node].add(part(source, lo, hi))
            elif node in needed:
                lo, hi = needed[node]
                volume = program.local[node]
                read = zip(volume.sources, volume.needs(lo, hi), strict=True)
                given = [part(source, *span) for source, span in read]
                moments = self._moments(node, gathered, needed, wanted)
                if moments is not None:
                    assert isinstance(volume, Convolution)
                    y, mean, variance = volume.with_statistics(lo, hi, given, self.get)
                    for one_of in moments:
                        one_of.merge(y.shape[2:].numel(), mean, variance)
                else:
                    y = volume.run(lo, hi, given, self.get)
                live[node] = y
                del y, given
                if node in wanted:
                    self._keep(one, node, live[node], wanted[node])
            for source in _sources(program, node):
                left[source] -= 1
                if left[source] == 0:
                    live.pop(source, None)
            if node not in left:
                live.pop(node, None)

    def _load(self, node: Node, lo: int, hi: int) -> Tensor:
        x = planes(self.get(node), lo, hi)
        return x.to(value(node).dtype)

    def _moments(
        self,
        node: Node,
        gathered: dict[Node, Gathered],
        needed: dict[Node, Range],
        wanted: dict[Node, Range],
    ) -> list[Moments] | None:
        """Whose statistics a convolution can tell of the planes that it makes."""
        found = [
            statistics
            for key, statistics in gathered.items()
            if isinstance(statistics, Moments)
            and self.program.gathered[key][0] is node
            and with_convolution(self.program, key, needed, wanted)
        ]
        return found or None

    def _keep(self, one: Pass, node: Node, y: Tensor, span: Range) -> None:
        """A target that somebody reads later."""
        lo, hi = span
        if lo == hi:
            return
        if self.destination is not None and self.program.finished(node):
            self.destination.write(lo, hi, y)
            self.values[node] = y.new_empty(0)
            return
        if one.slabs == 1 and (not self.plan.in_slabs or node in self.program.results):
            self.values[node] = y
            return
        if node in self.program.results:
            if node not in self.values:
                x = value(node)
                strides = [int(n) for n in x.stride()]
                self.values[node] = torch.empty_strided(shape_of(node), strides, dtype=x.dtype)
            self.values[node][:, :, lo:hi].copy_(y)
            return
        if node not in self.stores:
            self.stores[node] = Store(shape_of(node), self.plan.stored_dtype(node))
        self.stores[node].write(lo, hi, y)


def _sources(program: Any, node: Node) -> tuple[Node, ...]:
    if node in program.gathered:
        return (program.gathered[node][0],)
    return program.local[node].sources
