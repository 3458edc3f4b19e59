"""What the suites here share: a fair allocator, the machine's description, and the tables at the end."""

from __future__ import annotations

import math
import os
import statistics
import sys
from typing import Any

import pytest
from operators.work import LAYOUTS

from volnet.bench.run import RETAINING
from volnet.cli.info import collect

# volnet keeps its memory and has it on huge pages; torch gives large tensors back to the system each time and
# pays for their pages anew. So that kernels are compared and not allocators, torch gets a malloc that keeps
# memory and maps huge pages as well.
RESULTS = pytest.StashKey[dict[tuple[str, str], Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="tiny shapes only: does it still run?")
    parser.addoption("--default-malloc", action="store_true", help="leave torch the allocator as it comes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: a tiny shape, for --quick")
    config.stash[RESULTS] = {}
    retained = os.environ.get("GLIBC_TUNABLES") == RETAINING
    if retained or any(
        config.getoption(name) for name in ("--quick", "--default-malloc", "benchmark_disable")
    ):
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()  # or the new process would write into the old one's files
    os.environ["GLIBC_TUNABLES"] = RETAINING
    os.execv(sys.executable, sys.orig_argv)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    quick = config.getoption("--quick")
    chosen = [item for item in items if (item.get_closest_marker("quick") is not None) == quick]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> dict[tuple[str, str], Any]:
    """Results by operator and shape, for the tables at the end."""
    return pytestconfig.stash[RESULTS]


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    facts = collect()
    del facts["memory"]["pool"], facts["memory"]["available_bytes"]  # of the moment, not of the machine
    machine_info["volnet"] = facts
    machine_info["malloc"] = os.environ.get("GLIBC_TUNABLES", "default")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    timed = {key: result for key, result in config.stash[RESULTS].items() if result.times}
    if timed:
        terminalreporter.write_line("")
        for line in [machine_line(), "", *markdown(timed), *summary(list(timed.values()))]:
            terminalreporter.write_line(line)


def machine_line() -> str:
    facts = collect()
    memory = facts["memory"]["total_bytes"]
    malloc = "retaining malloc" if os.environ.get("GLIBC_TUNABLES") == RETAINING else "default malloc"
    return (
        f"{facts['cpu']['model']}, {facts['threads']['torch']} threads, {facts['isa']['in_use']}, "
        f"{(memory or 0) / 2**30:.0f} GiB; torch {facts['versions']['torch']}, "
        f"volnet {facts['versions']['volnet']}; {malloc}"
    )


def markdown(timed: dict[tuple[str, str], Any]) -> list[str]:
    """One table an operator: median milliseconds; how many times as long as volnet the best peer takes (least
    and most of all rounds), and torch in the same layout; which part of volnet's time the floor is."""
    lines: list[str] = []
    for operator in dict.fromkeys(key[0] for key in timed):
        rows = {shape: result for (name, shape), result in timed.items() if name == operator}
        columns = list(dict.fromkeys(name for result in rows.values() for name in result.times))
        ours = [name for name in columns if name.startswith("volnet")]
        layouts = [layout for layout in LAYOUTS if {f"volnet {layout}", f"torch {layout}"} <= set(columns)]
        header = [operator, *(f"{name}, ms" for name in columns), "best peer / volnet"]
        header += [f"{layout} / {layout}" for layout in layouts]
        header += [f"floor / {name.removeprefix('volnet ')}" for name in ours]
        lines += [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
        for shape, result in rows.items():
            cells = [shape, *(milliseconds(result.times.get(name)) for name in columns)]
            cells.append(ratio(result, result.peer, result.volnet))
            cells += [ratio(result, f"torch {layout}", f"volnet {layout}") for layout in layouts]
            cells += [floor_share(result, name) for name in ours]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return lines


def milliseconds(times: list[float] | None) -> str:
    return f"{statistics.median(times) * 1e3:.3g}" if times else "-"


def ratio(result: Any, peer: str | None, ours: str | None) -> str:
    if peer not in result.times or ours not in result.times:
        return "-"
    r = result.ratio(peer, ours)
    return f"{r['median']:.3g} ({r['least']:.3g}-{r['most']:.3g})"


def floor_share(result: Any, ours: str) -> str:
    floor = result.floor(ours)
    kind = max(floor, key=lambda name: floor[name])
    if floor[kind] == 0 or not result.times.get(ours):
        return "-"
    return f"{floor[kind] / statistics.median(result.times[ours]):.0%} ({kind})"


def summary(results: list[Any]) -> list[str]:
    """One row a group of shapes: how many times as long as volnet torch takes, each at its best, and each in
    the same layout; geometric means, and the worst shapes. And the part of volnet's time that the floor is,
    in both layouts."""
    groups: dict[str, list[Any]] = {}
    for result in results:
        name = result.shape.get("group")
        if name is not None and result.volnet and result.peer:
            groups.setdefault(name, []).append(result)
    rows = {}
    for name, members in groups.items():
        rows[name] = members
        large = [result for result in members if math.prod(result.shape["size"]) >= 16**3]
        if 0 < len(large) < len(members):
            rows[f"{name}, 16^3 voxels or more"] = large
    if not rows:
        return []
    header = ["group", "shapes", "best torch / volnet", "worst"]
    for layout in LAYOUTS:
        header += [f"{layout} / {layout}", "worst"]
    for layout in LAYOUTS:
        header += [f"floor / {layout}", "worst"]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for name, members in rows.items():
        cells = [
            name,
            str(len(members)),
            *worst_of({r: r.ratio(r.peer, r.volnet)["median"] for r in members}),
        ]
        for layout in LAYOUTS:
            pair = (f"torch {layout}", f"volnet {layout}")
            cells += worst_of({r: r.ratio(*pair)["median"] for r in members if r.times.get(pair[0])})
        for layout in LAYOUTS:
            ours = f"volnet {layout}"
            shares = {r: max(r.floor(ours).values()) / statistics.median(r.times[ours]) for r in members}
            cells += [f"{statistics.geometric_mean(shares.values()):.0%}", f"{min(shares.values()):.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def worst_of(values: dict[Any, float]) -> list[str]:
    """The geometric mean, and the least with its shape's name."""
    if not values:
        return ["-", "-"]
    worst = min(values, key=lambda r: values[r])
    return [
        f"{statistics.geometric_mean(values.values()):.2f}",
        f"{values[worst]:.2f} ({worst.shape['name']})",
    ]
