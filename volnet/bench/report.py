"""What was measured as tables, JSON and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from volnet.bench.peers import PEERS, VOLNET
from volnet.bench.run import Case, Measured

__all__ = ["machine_line", "plot", "summary", "table"]

EAGER = "torch"


def machine_line(facts: dict[str, Any]) -> str:
    """From what `volnet info` collects."""
    packages = {name: facts["packages"].get(name) for name in ("onnxruntime", "openvino")}
    versions = facts["versions"] | {name: version for name, version in packages.items() if version}
    return (
        f"{facts['cpu']['model']}, {facts['threads']['torch']} threads, {facts['isa']['in_use']}, "
        f"{(facts['memory']['total_bytes'] or 0) / 2**30:.0f} GiB; "
        + ", ".join(f"{name} {versions[name]}" for name in ("torch", *packages, "volnet") if name in versions)
    )


def table(case: Case) -> list[str]:
    """A row a peer, the fastest of each precision first."""
    head = [_title(case), "computes in", "ms", "Mvoxels/s", "times volnet's time"]
    head += ["peak, GiB", "energy, J", "error", "prepared in, s"]
    rows = []
    ran = [measured for measured in case.peers if measured.failure is None]
    for measured in sorted(ran, key=lambda m: (m.precision != "float32", m.median)):
        rows.append(
            [
                measured.peer,
                measured.precision,
                f"{1e3 * measured.median:.4g}",
                f"{1e-6 * case.voxels / measured.median:.3g}",
                "1" if measured.peer == VOLNET else _spread(measured.ratios),
                f"{(measured.peak or 0) / 2**30:.2f}",
                "-" if measured.joules is None else f"{measured.joules:.3g}",
                f"{measured.error:.1e}",
                f"{measured.prepare_seconds:.1f}",
            ]
        )
    lines = _markdown(head, rows)
    failed = [m for m in case.peers if m.failure is not None]
    if failed:
        lines += ["", *_markdown(["not measured", "because"], [[m.peer, str(m.failure)] for m in failed])]
    return lines


def summary(cases: Iterable[Case]) -> list[str]:
    """A row a network: volnet in float32 beside the fastest others."""
    head = ["network", "volnet, ms", "best float32 peer", "times as long", "best bfloat16 peer"]
    head += ["times as long", "its error / volnet's", "volnet's peak / torch's"]
    rows = []
    for case in cases:
        by_name = {measured.peer: measured for measured in case.peers if measured.failure is None}
        ours, eager = by_name.get(VOLNET), by_name.get(EAGER)
        if ours is None:
            continue
        cells = [_title(case), f"{1e3 * ours.median:.4g}"]
        for precision in ("float32", "bfloat16"):
            best = fastest(by_name.values(), precision)
            cells += ["-", "-"] if best is None else [best.peer, _spread(best.ratios)]
        cells.append("-" if best is None else f"{(best.error or 0) / (ours.error or 1):.0f}")
        cells.append("-" if eager is None else f"{(ours.peak or 0) / (eager.peak or 1):.2f}")
        rows.append(cells)
    return _markdown(head, rows)


def fastest(measured: Iterable[Measured], precision: str) -> Measured | None:
    """Of the peers on a CPU that compute with it."""
    peers = [m for m in measured if m.precision == precision and not m.peer.startswith(VOLNET)]
    return min((m for m in peers if PEERS[m.peer].needs != "CUDA"), key=lambda m: m.median, default=None)


def plot(cases: Sequence[Case], file: Path) -> None:
    """Throughput of every peer, a panel a case; errors stand beside the bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ran = [sorted((m for m in c.peers if m.failure is None), key=lambda m: -m.median) for c in cases]
    bars = [max(len(peers), 1) for peers in ran]
    figure = Figure(figsize=(9, 1.2 * len(cases) + 0.28 * sum(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=bars)[:, 0]
    for panel, case, peers in zip(panels, cases, ran, strict=True):
        rates = [1e-6 * case.voxels / m.median for m in peers]
        colours = [_colour(m) for m in peers]
        drawn = panel.barh([m.peer for m in peers], rates, color=colours)
        panel.bar_label(drawn, [f"{m.error:.0e}" for m in peers], padding=3, fontsize="small")
        panel.set_title(_title(case), loc="left")
        panel.set_xlabel("million voxels a second (pale: bfloat16); beside the bars: error against float64")
        panel.margins(x=0.12)
    figure.savefig(file, dpi=120)


def _title(case: Case) -> str:
    size = "x".join(map(str, (case.batch, *case.size)))
    return f"{case.network} {size}, {case.threads} thread{'s' * (case.threads > 1)}"


def _colour(measured: Measured) -> str:
    names = {True: ("tab:orange", "navajowhite"), False: ("tab:blue", "lightsteelblue")}
    return names[measured.peer.startswith(VOLNET)][measured.precision != "float32"]


def _spread(ratios: list[float]) -> str:
    if not ratios:
        return "-"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines]
