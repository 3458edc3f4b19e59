"""`volnet info`: the machine, and what volnet uses of it."""

from __future__ import annotations

import json
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import volnet

OPTIONAL_PACKAGES = (
    "SimpleITK",
    "pydicom",
    "highdicom",
    "blosc2",
    "safetensors",
    "numba",
    "scipy",
    "jinja2",
    "pillow",
    "matplotlib",
    "ray",
    "monai",
    "onnxruntime",
    "openvino",
    "intel-extension-for-pytorch",
    "pytest-benchmark",
)


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show the CPU, its instruction sets, threads, memory and packages, and what volnet uses of them.

    Examples:

    $ volnet info

    $ volnet info --json > machine.json

    $ VOLNET_MAX_ISA=avx2 volnet info     # as on a machine without AVX-512
    """
    facts = collect()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        Console().print(_table(facts))


def collect(root: Path = Path("/")) -> dict[str, Any]:
    """What `volnet info` shows, as JSON types; what the system does not tell is None or empty.

    Args:
        root: where `proc` and `sys` are.
    """
    levels = list(volnet.isa.available())
    kernels = volnet.isa.kernels()
    return {
        "cpu": _cpu(root),
        "isa": {
            "found": levels,
            "built": sorted({level for _, level, _ in kernels}, key=_by_level(levels)),
            "in_use": volnet.isa.active(),
            "cap": os.environ.get("VOLNET_MAX_ISA"),
            "kernels": len(kernels),
        },
        "threads": {
            "torch": torch.get_num_threads(),
            "torch_interop": torch.get_num_interop_threads(),
            "allowed_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "cgroup_cpus": _cgroup_cpus(root),
        },
        "memory": {
            **_memory(root),
            "huge_pages": _choice(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
            "pool": volnet.memory.stats(),
        },
        "versions": {
            "volnet": volnet.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "packages": {name: _version(name) for name in OPTIONAL_PACKAGES},
    }


def _by_level(levels: list[str]) -> Any:
    # Levels beyond this machine's come last.
    return lambda level: (levels.index(level) if level in levels else len(levels), level)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.lstrip("-").isdigit() else None


def _choice(text: str | None) -> str | None:
    chosen = re.search(r"\[(\w+)\]", text or "")
    return chosen[1] if chosen else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu(root: Path) -> dict[str, Any]:
    cpuinfo = _text(root / "proc/cpuinfo") or ""
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    system = root / "sys/devices/system"
    # A core's siblings all list the same CPUs, so distinct lists are cores.
    siblings = {_text(path) for path in system.glob("cpu/cpu[0-9]*/topology/thread_siblings_list")} - {None}
    nodes = sorted(system.glob("node/node[0-9]*"), key=lambda path: int(path.name[4:]))
    return {
        "model": model[1].strip() if model else platform.processor() or None,
        "physical_cores": len(siblings) or None,
        "logical_cores": os.cpu_count(),
        "caches": _caches(system / "cpu"),
        "numa_nodes": [
            {"node": int(node.name[4:]), "cpus": _text(node / "cpulist"), "memory_bytes": _node_memory(node)}
            for node in nodes
        ],
    }


def _caches(cpus: Path) -> list[dict[str, Any]]:
    """Each kind of cache once, with how many of it there are."""
    places: dict[tuple[str, str, str], set[str]] = {}
    for index in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        level, kind, size, shared = (
            _text(index / name) for name in ("level", "type", "size", "shared_cpu_list")
        )
        if level and kind and size and shared:
            places.setdefault((level, kind, size), set()).add(shared)
    letter = {"Data": "d", "Instruction": "i"}
    return [
        {"name": f"L{level}{letter.get(kind, '')}", "size": size, "count": len(shared)}
        for (level, kind, size), shared in sorted(places.items())
    ]


def _node_memory(node: Path) -> int | None:
    total = re.search(r"MemTotal:\s+(\d+) kB", _text(node / "meminfo") or "")
    return int(total[1]) * 1024 if total else None


def _memory(root: Path) -> dict[str, int | None]:
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _text(root / "proc/meminfo") or "", re.MULTILINE))
    # A container's limit, cgroup v2 and then v1; "max" and v1's huge default both mean none.
    limit = _number(root / "sys/fs/cgroup/memory.max")
    if limit is None:
        limit = _number(root / "sys/fs/cgroup/memory/memory.limit_in_bytes")
    return {
        "total_bytes": int(kilobytes["MemTotal"]) * 1024 if "MemTotal" in kilobytes else None,
        "available_bytes": int(kilobytes["MemAvailable"]) * 1024 if "MemAvailable" in kilobytes else None,
        "cgroup_limit_bytes": limit if limit is not None and limit < 1 << 60 else None,
    }


def _cgroup_cpus(root: Path) -> float | None:
    quota = (_text(root / "sys/fs/cgroup/cpu.max") or "").split()
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():
        return int(quota[0]) / int(quota[1])
    return None


def _bytes(n: int | None) -> str:
    if n is None:
        return "unknown"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"


def _table(facts: dict[str, Any]) -> Table:
    cpu, isa, threads, memory = (facts[part] for part in ("cpu", "isa", "threads", "memory"))
    versions, pool = facts["versions"], memory["pool"]
    rows = [
        ("volnet", f"{versions['volnet']}, torch {versions['torch']}, Python {versions['python']}"),
        ("system", versions["system"]),
        ("CPU", cpu["model"] or "unknown"),
        (
            "cores",
            f"{cpu['physical_cores'] or 'unknown'} physical, {cpu['logical_cores']} logical",
        ),
        ("caches", ", ".join(f"{c['count']} × {c['name']} {c['size']}" for c in cpu["caches"]) or "unknown"),
        (
            "NUMA nodes",
            "; ".join(
                f"{node['node']}: CPUs {node['cpus'] or 'none'}, {_bytes(node['memory_bytes'])}"
                for node in cpu["numa_nodes"]
            )
            or "unknown",
        ),
        ("ISA found", ", ".join(isa["found"])),
        ("ISA built", f"{', '.join(isa['built']) or 'none'} ({isa['kernels']} kernels)"),
        ("ISA in use", isa["in_use"] + (f" (VOLNET_MAX_ISA={isa['cap']})" if isa["cap"] else "")),
        (
            "threads",
            f"{threads['torch']} of torch's, on {threads['allowed_cpus'] or 'unknown'} allowed CPUs"
            + (f", container's share {threads['cgroup_cpus']:g}" if threads["cgroup_cpus"] else ""),
        ),
        (
            "memory",
            f"{_bytes(memory['total_bytes'])}, {_bytes(memory['available_bytes'])} available"
            + (
                f", container's limit {_bytes(memory['cgroup_limit_bytes'])}"
                if memory["cgroup_limit_bytes"]
                else ""
            ),
        ),
        ("huge pages", memory["huge_pages"] or "unknown"),
        (
            "pool",
            f"{_bytes(pool['in_use'])} in use, {_bytes(pool['cached'])} cached, "
            + (f"limit {_bytes(pool['limit'])}" if pool["limit"] else "no limit"),
        ),
        ("packages", ", ".join(f"{name} {v}" for name, v in facts["packages"].items() if v) or "none"),
        ("not installed", ", ".join(name for name, v in facts["packages"].items() if not v) or "none"),
    ]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table
