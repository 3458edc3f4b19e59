"""Instruction sets, threads and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from volnet import _C, isa, ops


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def cpu_flags() -> set[str]:
    line = next(x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags"))
    return set(line.split(":")[1].split())


def test_levels_agree_with_the_kernels_list_of_cpu_flags() -> None:
    flags = cpu_flags()
    expected = ["scalar"]
    for level, needed in {
        "avx2": {"avx2", "fma"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avx512_bf16": {"avx512_bf16"},
        "amx": {"amx_bf16", "amx_tile"},
    }.items():
        if not needed <= flags:
            break
        expected.append(level)
    assert isa.available() == tuple(expected)


def test_limit_caps_never_forces_and_ends_with_the_block() -> None:
    before = isa.active()
    with isa.limit("avx2"), isa.limit("amx"):
        assert isa.active() == before
    with isa.limit("scalar"):
        assert isa.active() == "scalar"
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(isa.active).result() == before  # a cap belongs to its thread
    assert isa.active() == before
    with pytest.raises(ValueError, match="sse9"), isa.limit("sse9"):
        pass


def test_environment_caps_the_process() -> None:
    result = run_python("import volnet; print(volnet.isa.active())", VOLNET_MAX_ISA="scalar")
    assert result.stdout.strip() == "scalar"
    result = run_python("import volnet; volnet.isa.active()", VOLNET_MAX_ISA="mmx")
    assert result.returncode != 0
    assert "mmx" in result.stderr


def test_extension_uses_nothing_but_the_stable_abi() -> None:
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", "-C", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    assert "torch" in symbols
    assert [line for line in symbols.splitlines() if "c10::" in line or "at::" in line] == []


def test_many_threads_at_once() -> None:
    x, w = torch.randn(1, 8, 9, 10, 11), torch.randn(16, 8, 3, 3, 3)
    expected = ops.conv3d(x, w)
    failures = []

    def work() -> None:
        for _ in range(50):
            if not torch.equal(ops.conv3d(x, w), expected):
                failures.append("different")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_works_in_a_forked_child() -> None:
    result = run_python(
        "import os, torch, warnings, volnet\n"
        "x, w = torch.randn(1, 8, 9, 10, 11), torch.randn(16, 8, 3, 3, 3)\n"
        "y = volnet.ops.conv3d(x, w)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if torch.equal(volnet.ops.conv3d(x, w), y) else 3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert result.stdout.strip() == "0", result.stderr


def test_import_needs_no_optional_package() -> None:
    optional = [
        "SimpleITK",
        "pydicom",
        "scipy",
        "safetensors",
        "typer",
        "rich",
        "jinja2",
        "matplotlib",
        "numba",
    ]
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in optional)
    result = run_python(f"import sys\n{blocked}import volnet")
    assert result.returncode == 0, result.stderr
