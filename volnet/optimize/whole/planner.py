"""Which volumes are stored and which are computed again, in how many passes, and in how high slabs.

A pass goes once along D and makes its targets: volumes to store, results, and statistics. What lies between
the stored volumes that it reads and its targets is computed slab by slab, with the planes around a slab that
its readers need. A volume that is stored is read in a later pass; one that is read for the last time is given
back plane by plane. Nothing here touches a voxel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from volnet.optimize.graph import value
from volnet.optimize.whole.local import Convolution, Interpolation, Local, Range, shape_of
from volnet.optimize.whole.program import Program
from volnet.optimize.whole.statistics import Moments
from volnet.optimize.whole.storage import gib

__all__ = ["Pass", "Plan", "Schedule", "cuts", "make_plan", "ranges", "with_convolution"]

# What the planner weighs computing again against: seconds of a machine that it need not be.
FLOP = 1e-12
BYTE = 1e-10
VIEWS = ("view", "reshape", "permute", "transpose", "flatten", "getitem", "unsqueeze", "squeeze", "expand")
# How many of the plans that a search begins with are improved.
STARTS = 3
# Slabs of a pass, few first.
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)


@dataclass(eq=False)
class Pass:
    """One way along D. ``nodes`` has what is computed slab by slab, in order, ``reads`` the volumes that are
    there, and ``last`` those of them that nobody reads afterwards."""

    whole: list[Node] = field(default_factory=list)  # computed before it
    targets: list[Node] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    reads: list[Node] = field(default_factory=list)
    last: frozenset[Node] = frozenset()
    slabs: int = 1
    peak: int = 0
    seconds: float = 0.0


class Schedule:
    """The passes that follow from what is ``stored``."""

    def __init__(self, program: Program, stored: frozenset[Node]) -> None:
        self.program, self.stored = program, stored
        self.at: dict[Node, int] = {}
        for node in program.order:
            if node in program.local:
                read = (*program.local[node].sources, *program.local[node].whole)
                self.at[node] = max(map(self._readable, read), default=0)
            elif node in program.gathered:
                source = program.gathered[node][0]
                # Statistics of a volume that is being stored are gathered on the way.
                on_the_way = source in program.local
                self.at[node] = self.at[source] if on_the_way else self._readable(source)
            elif node.op not in ("placeholder", "get_attr", "output"):
                self.at[node] = max(map(self._readable, node.all_input_nodes), default=0)
        self.passes = [Pass() for _ in range(max(self.at.values(), default=0) + 1)]
        for node in program.whole:
            self.passes[self.at[node]].whole.append(node)
        for node in program.order:
            if node in stored or node in program.gathered:
                self.passes[self.at[node]].targets.append(node)
        for one in self.passes:
            self._fill(one)
        self.last_read = self._last_reads()
        for i, one in enumerate(self.passes):
            one.last = frozenset(n for n in one.reads if n in stored and self.last_read[n] == (i, 1, 0))

    def _readable(self, node: Node) -> int:
        """The first pass that can read it."""
        at = self.at.get(node, 0)
        return at + 1 if node in self.stored or node in self.program.gathered else at

    def _fill(self, one: Pass) -> None:
        program, nodes, reads = self.program, set(), set()
        waiting = list(one.targets)
        while waiting:
            node = waiting.pop()
            if node in nodes:
                continue
            nodes.add(node)
            if node in program.gathered:
                sources: Iterable[Node] = (program.gathered[node][0],)
            else:
                sources = program.local[node].sources
            for source in sources:
                in_flight = source in program.local and (source not in self.stored or source in one.targets)
                if in_flight:
                    waiting.append(source)
                else:
                    reads.add(source)
        one.nodes = sorted(nodes, key=program.order.__getitem__)
        one.reads = sorted(reads, key=program.order.__getitem__)

    def _last_reads(self) -> dict[Node, tuple[int, int, float]]:
        """When each value is read for the last time: pass, before (0) or in (1) it, place in the order."""
        program, last = self.program, dict[Node, tuple[int, int, float]]()

        def read(node: Node, when: tuple[int, int, float]) -> None:
            last[node] = max(last.get(node, when), when)

        for i, one in enumerate(self.passes):
            for node in one.nodes:
                if node in program.gathered:
                    read(program.gathered[node][0], (i, 1, 0))
                else:
                    for source in (*program.local[node].sources, *program.local[node].whole):
                        read(source, (i, 1, 0))
            for node in one.whole:
                for source in node.all_input_nodes:
                    read(source, (i, 0, program.order[node]))
        for node in program.results:
            last[node] = (len(self.passes), 0, math.inf)
        for node in reversed(program.order):  # a view keeps what it is a view of
            if node in last and _is_view(node) and node.all_input_nodes:
                read(node.all_input_nodes[0], last[node])
        return last


def _is_view(node: Node) -> bool:
    return getattr(node.target, "__name__", node.target) in VIEWS


def bytes_of(node: Node) -> int:
    """Of a value that is there as a whole."""
    if _is_view(node):
        return 0
    leaves = [x for x in tree_leaves(value(node)) if isinstance(x, Tensor)]
    return sum(math.prod(int(n) for n in x.shape) * x.dtype.itemsize for x in leaves)


def cuts(program: Program, one: Pass, slab: int) -> dict[Node, Range]:
    """The planes of each target that belong to a slab of the pass; a deeper target has its share of them."""
    depths = {}
    for node in one.targets:
        volume = program.gathered[node][0] if node in program.gathered else node
        depths[node] = shape_of(volume)[2]
    return {node: _share(depth, max(depths.values()), one.slabs, slab) for node, depth in depths.items()}


def _share(depth: int, deepest: int, slabs: int, slab: int) -> Range:
    height = -(-deepest // slabs)
    # A multiple of the step of the shallower ones, where that makes a slab but little higher.
    step = max((power for power in (32, 16, 8, 4, 2) if 4 * power <= height), default=1)
    height = -(-height // step) * step
    ends = (min(deepest, i * height) for i in (slab, slab + 1))
    lo, hi = (-(-end * depth // deepest) for end in ends)
    return lo, hi


def ranges(program: Program, one: Pass, wanted: dict[Node, Range]) -> dict[Node, Range]:
    """The planes of all nodes of the pass, and of what it reads, that the ``wanted`` ones of its targets
    need."""
    needed: dict[Node, Range] = {}

    def need(node: Node, planes: Range) -> None:
        if node in needed:
            lo, hi = needed[node]
            planes = (min(lo, planes[0]), max(hi, planes[1]))
        needed[node] = planes

    for node in reversed(one.nodes):
        if node in wanted and wanted[node][0] < wanted[node][1]:
            if node in program.gathered:
                need(program.gathered[node][0], wanted[node])
                continue
            need(node, wanted[node])
        if node in needed:
            volume = program.local[node]
            for source, planes in zip(volume.sources, volume.needs(*needed[node]), strict=True):
                need(source, planes)
    return needed


@dataclass
class Plan:
    """How one graph is run. Printing it shows what is stored, and the passes."""

    program: Program
    schedule: Schedule
    in_slabs: bool  # else every pass has one slab, and what is stored is just kept
    storage: torch.dtype | None
    peak: int  # bytes, as predicted
    seconds: float  # of a machine that computes FLOP and moves BYTE; for comparison only
    budget: int

    @property
    def passes(self) -> list[Pass]:
        return self.schedule.passes

    def stored_dtype(self, node: Node) -> torch.dtype:
        """Volumes that are read plane by plane only may be stored in another."""
        dtype: torch.dtype = value(node).dtype
        if self.storage is None or dtype != torch.float32 or node in _read_whole(self.program):
            return dtype
        return self.storage

    def __str__(self) -> str:
        lines = [f"{len(self.passes)} passes, peak {gib(self.peak)}, budget {gib(self.budget)}"]
        for i, one in enumerate(self.passes):
            made = [f"{name(n)}{' stored' if n in self.schedule.stored else ''}" for n in one.targets]
            again = [n for n in one.nodes if n not in one.targets and self.program.local[n].flop() > 0]
            lines.append(
                f"{i:4d}: {one.slabs} slab{'s' * (one.slabs != 1)}, peak {gib(one.peak)}: "
                f"{', '.join(made) or 'nothing along D'}"
                + (f"; on the way {', '.join(map(name, again))}" if again else "")
            )
        return "\n".join(lines)


def name(node: Node) -> str:
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else ""
    return f"{node.name} ({path.partition('].')[2]})" if path else node.name


def _read_whole(program: Program) -> frozenset[Node]:
    """Volumes computed plane by plane that somebody wants as a whole."""
    found = {n for n in program.results if n in program.local}
    for node in program.whole:
        found |= {n for n in node.all_input_nodes if n in program.local}
    for volume in program.local.values():
        found |= {n for n in volume.whole if n in program.local}
    return frozenset(found)


class Planner:
    """Searches among the sets of volumes that may be stored."""

    def __init__(
        self, program: Program, storage: torch.dtype | None, constant: int, result_is_given: bool
    ) -> None:
        self.program, self.storage, self.constant = program, storage, constant
        self.result_is_given = result_is_given
        self.forced = _read_whole(program)
        self.candidates = [n for n in program.local if self._is_candidate(n)]
        self.simulated: dict[Any, tuple[int, float]] = {}
        self.tried: dict[tuple[frozenset[Node], int, bool], tuple[Plan, int]] = {}

    def _is_candidate(self, node: Node) -> bool:
        """What is dear to compute again, or holds several volumes in memory until it is computed. Where the
        only reader makes another volume of it plane by plane, that one is the candidate."""
        volume = self.program.local[node]
        if node in self.forced or (type(volume) is Local and len(set(volume.sources)) < 2):
            return False
        users = list(node.users)
        while len(users) == 1 and type(self.program.local.get(users[0])) is Local:
            reader = self.program.local[users[0]]
            if len(reader.sources) > 1 or users[0] in self.forced:
                return len(reader.sources) > 1 and users[0] not in self.forced
            users = list(users[0].users)
        return True

    def stored_bytes(self, node: Node) -> int:
        volume = self.program.local[node]
        kept = node in self.forced or volume.dtype != torch.float32
        return volume.plane_bytes // (1 if kept or self.storage is None else 2)

    def plan(self, stored: frozenset[Node], budget: int, in_slabs: bool) -> tuple[Plan, int]:
        """And by how many bytes its passes are over the budget, in all."""
        key = (stored, budget, in_slabs)
        if key not in self.tried:
            self.tried[key] = self._plan(stored, budget, in_slabs)
        return self.tried[key]

    def _plan(self, stored: frozenset[Node], budget: int, in_slabs: bool) -> tuple[Plan, int]:
        schedule = Schedule(self.program, stored)
        plan = Plan(self.program, schedule, in_slabs, self.storage, 0, 0.0, budget)
        excess = 0
        resident = self._resident(schedule)
        for i, one in enumerate(schedule.passes):
            base = self.constant + resident[i]
            first = base + self._peak_of_whole(schedule, i)
            room = budget - base
            peak, one.seconds = 0, 0.0
            if one.targets:
                peak, one.seconds, one.slabs = self._slabs(schedule, one, room, in_slabs)
            one.peak = max(first, base + peak)
            plan.peak = max(plan.peak, one.peak)
            plan.seconds += one.seconds
            excess += max(0, one.peak - budget)
        return plan, excess

    def _resident(self, schedule: Schedule) -> list[int]:
        """What is there during the whole of each pass."""
        program, count = self.program, len(schedule.passes)
        changes = [0] * (count + 2)

        def there(size: int, first: int, last: int) -> None:
            if first <= last:
                changes[first] += size
                changes[min(last, count) + 1] -= size

        for node in schedule.stored:
            if not self._elsewhere(node):
                last, place, _ = schedule.last_read.get(node, (0, 0, 0))
                whole = place == 1 and node not in schedule.passes[last].last
                size = self.stored_bytes(node) * shape_of(node)[2]
                there(size, schedule.at[node] + 1, last if whole else last - (last < count))
                if place == 0 and last < count:  # read before its last pass begins
                    there(size, last, last)
        for node in (*program.whole, *program.gathered):
            last, place, _ = schedule.last_read.get(node, (0, 0, 0))
            first = schedule.at[node] + (node in program.gathered)
            there(_rounded(bytes_of(node)), first, last - (place == 0))
        return list(itertools.accumulate(changes))

    def _elsewhere(self, node: Node) -> bool:
        return self.result_is_given and self.program.finished(node)

    def _peak_of_whole(self, schedule: Schedule, i: int) -> int:
        """Beyond what stays: of what is computed before a pass."""
        live: dict[Node, int] = {}
        now = peak = 0
        for node in schedule.passes[i].whole:
            size = _rounded(bytes_of(node))
            now += size
            live[node] = size
            peak = max(peak, now)
            for used in node.all_input_nodes:
                if schedule.last_read[used] <= (i, 0, self.program.order[node]):
                    now -= live.pop(used, 0)
        return peak

    def _slabs(self, schedule: Schedule, one: Pass, room: int, in_slabs: bool) -> tuple[int, float, int]:
        """Peak, seconds and number of the fewest slabs that fit; of the best there are where none do."""
        deepest = max(hi for _, hi in cuts(self.program, one, 0).values())
        best: tuple[int, float, int] | None = None
        for count in COUNTS:
            if count > deepest and count > 1:
                break
            peak, seconds = self._simulate(schedule, one, count, in_slabs)
            if best is None or peak < best[0]:
                best = (peak, seconds, count)
            if not in_slabs or peak <= room:
                best = (peak, seconds, count)
                break
        assert best is not None
        return best

    def _simulate(self, schedule: Schedule, one: Pass, count: int, in_slabs: bool) -> tuple[int, float]:
        key = (tuple(one.targets), tuple(one.nodes), one.last, count, in_slabs)
        if key not in self.simulated:
            one.slabs = count
            steps = sorted({i for i in (0, 1, count // 2, count - 2, count - 1) if 0 <= i < count})
            peak, times = 0, []
            for step in steps:
                bytes_, seconds = self._simulate_slab(schedule, one, step, in_slabs)
                peak = max(peak, bytes_)
                times.append(seconds)
            self.simulated[key] = peak, times[len(times) // 2] * count
        return self.simulated[key]

    def _simulate_slab(self, schedule: Schedule, one: Pass, step: int, in_slabs: bool) -> tuple[int, float]:
        program = self.program
        wanted = cuts(program, one, step)
        needed = ranges(program, one, wanted)
        copies = one.slabs > 1 or in_slabs
        resident, seconds = 0, 0.0
        for node in one.last:
            depth = shape_of(node)[2]
            first = needed[node][0] if node in needed and in_slabs else 0
            resident += self.stored_bytes(node) * (depth - first)
        for node in one.targets:
            if node in program.local and not self._elsewhere(node) and copies:
                resident += self.stored_bytes(node) * wanted[node][1]
        left = dict[Node, int]()
        for node in one.nodes:
            for source in self._sources(node):
                left[source] = left.get(source, 0) + 1
        live: dict[Node, int] = {}
        now = peak = 0
        for node in one.nodes:
            extra = 0
            for source in self._sources(node):
                if source in one.reads and source in needed and source not in live:
                    live[source] = self._loaded(source, needed[source])
                    now += live[source]
                    seconds += 2 * BYTE * live[source]
            if node in program.gathered:
                source = program.gathered[node][0]
                if source in needed and not with_convolution(program, node, needed, wanted):
                    extra = self._temporary(source, wanted[node])
                    seconds += 3 * BYTE * extra
            elif node in needed:
                volume, (lo, hi) = program.local[node], needed[node]
                size = self._temporary(node, (lo, hi))
                live[node] = size
                now += size
                if isinstance(volume, Interpolation):
                    extra = size
                seconds += volume.flop() * (hi - lo) * FLOP + 2 * BYTE * size
                if node in schedule.stored and copies:
                    seconds += 2 * BYTE * size
            peak = max(peak, now + extra)
            for source in set(self._sources(node)):
                left[source] -= self._sources(node).count(source)
                kept = not copies and source in one.targets
                if left[source] == 0 and not kept:
                    now -= live.pop(source, 0)
            if node not in left and copies:
                now -= live.pop(node, 0)
        return resident + peak, seconds

    def _sources(self, node: Node) -> tuple[Node, ...]:
        if node in self.program.gathered:
            return (self.program.gathered[node][0],)
        return self.program.local[node].sources

    def _temporary(self, node: Node, planes: Range) -> int:
        n, c, _, h, w = shape_of(node)
        return _rounded(n * c * h * w * value(node).dtype.itemsize * (planes[1] - planes[0]))

    def _loaded(self, node: Node, planes: Range) -> int:
        """Planes of a volume that is there are a view where they lie one after another, in their dtype."""
        shape, converted = shape_of(node), False
        if node in self.program.local:
            converted = self.stored_bytes(node) != self.program.local[node].plane_bytes
        return self._temporary(node, planes) if converted or shape[0] > 1 else 0

    def search(self, budget: int) -> Plan | None:
        """The quickest plan that is found within the budget; None where none is."""
        everything = frozenset(self.candidates) | self.forced
        plan, excess = self.plan(everything, budget, False)
        if excess == 0:
            return plan
        starts = [self.plan(stored, budget, True) for stored in self._starts(everything)]
        starts.sort(key=lambda start: (start[1], start[0].seconds))
        found = [self._improved(*start, budget) for start in starts[:STARTS]]
        return min((plan for plan in found if plan), key=lambda plan: plan.seconds, default=None)

    def smallest(self) -> Plan:
        """The plan of the least peak that is found."""
        everything = frozenset(self.candidates) | self.forced
        starts = [self.plan(stored, 0, True)[0] for stored in self._starts(everything)]
        starts.sort(key=lambda plan: (plan.peak, plan.seconds))
        return min((self._lowered(plan) for plan in starts[:STARTS]), key=lambda plan: plan.peak)

    def _starts(self, everything: frozenset[Node]) -> list[frozenset[Node]]:
        """Everything stored, and ever less of it: first what takes most memory for the longest time."""
        schedule = Schedule(self.program, everything)

        def occupied(node: Node) -> int:
            passes = schedule.last_read.get(node, (0, 0, 0))[0] - schedule.at[node]
            return self.stored_bytes(node) * shape_of(node)[2] * passes

        order = sorted(self.candidates, key=occupied, reverse=True)
        return [everything - frozenset(order[:count]) for count in range(len(order) + 1)]

    def _improved(self, plan: Plan, excess: int, budget: int) -> Plan | None:
        while excess > 0:
            best = None
            for node in self._involved(plan, budget):
                other, over = self.plan(plan.schedule.stored ^ {node}, budget, True)
                # Of those that come closer, the one that costs least for it.
                gain = (excess - over) / (max(other.seconds - plan.seconds, 0.0) + 1e-3)
                if over < excess and (best is None or gain > best[0]):
                    best = (gain, other, over)
            if best is None:
                return None
            _, plan, excess = best
        before = math.inf
        while plan.seconds < before:
            before = plan.seconds
            for node in self.candidates:
                other, over = self.plan(plan.schedule.stored ^ {node}, budget, True)
                if over == 0 and other.seconds < plan.seconds:
                    plan = other
        return plan

    def _lowered(self, plan: Plan) -> Plan:
        while True:
            involved = self._involved(plan, plan.peak - 1)
            others = [self.plan(plan.schedule.stored ^ {node}, 0, True)[0] for node in involved]
            best = min(others, key=lambda other: (other.peak, other.seconds), default=plan)
            if best.peak >= plan.peak:
                return plan
            plan = best

    def _involved(self, plan: Plan, budget: int) -> list[Node]:
        """Candidates that are there, or are computed, while it takes more than the budget."""
        schedule, found = plan.schedule, set[Node]()
        for i, one in enumerate(plan.passes):
            if one.peak > budget:
                found.update(one.nodes, one.reads)
                found.update(
                    node
                    for node in schedule.stored
                    if schedule.at[node] < i <= schedule.last_read.get(node, (0, 0, 0))[0]
                )
        return [node for node in self.candidates if node in found]


def with_convolution(
    program: Program, node: Node, needed: dict[Node, Range], wanted: dict[Node, Range]
) -> bool:
    """Whether statistics come with the planes, because these are just the ones that they are of."""
    source, gathered = program.gathered[node]
    return (
        gathered is Moments
        and isinstance(program.local.get(source), Convolution)
        and needed.get(source) == wanted[node]
    )


def _rounded(size: int) -> int:
    """As the pool gives it out."""
    if size < 2**20:
        return size
    step = 2**21 if size >= 2**24 else 2**16
    return -(-size // step) * step


def make_plan(
    program: Program,
    budget: int,
    storage: torch.dtype | None,
    constant: int,
    result_is_given: bool,
) -> tuple[Plan | None, int]:
    """A plan within the budget, or None; and the smallest budget known, where it does not fit."""
    planner = Planner(program, storage, constant, result_is_given)
    plan = planner.search(budget)
    if plan is not None:
        return plan, plan.peak
    smallest = planner.smallest()
    if smallest.peak <= budget:
        smallest.budget = budget
        return smallest, smallest.peak
    return None, smallest.peak
