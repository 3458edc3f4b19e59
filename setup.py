"""Builds volnet._C. Everything else about the package is in pyproject.toml.

Nothing of the building machine is probed: every instruction set is compiled and chosen at run time.
"""

import os
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension

root = Path(__file__).parent
torch_root = Path(torch.__file__).parent

# libtorch's stable ABI as of torch 2.11: the binary runs on every later torch as well.
torch_abi = "0x020b000000000000"

extension = Extension(
    "volnet._C",
    sources=sorted(str(path.relative_to(root)) for path in (root / "csrc").rglob("*.cpp")),
    depends=sorted(str(path.relative_to(root)) for path in (root / "csrc").rglob("*.h")),
    include_dirs=[str(root / "csrc"), pybind11.get_include()],
    library_dirs=[str(torch_root / "lib")],
    libraries=["torch_cpu", "torch"],
    extra_compile_args=[
        "-std=c++20",
        "-O3",
        "-fvisibility=hidden",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",  # scalar code rounds as written; vector code says fma where it means it
        "-Wall",
        "-Wextra",
        "-Wno-uninitialized",  # GCC 12 finds fault with its own AVX-512 intrinsics
        "-Wno-maybe-uninitialized",
        "-isystem",
        str(torch_root / "include"),
        f"-DTORCH_TARGET_VERSION={torch_abi}",
        f'-DVOLNET_TORCH_ABI="{torch_abi}"',
        "-g0",
        *os.environ.get("VOLNET_CXXFLAGS", "").split(),
    ],
    extra_link_args=["-Wl,--as-needed", "-Wl,-O1", *os.environ.get("VOLNET_LDFLAGS", "").split()],
    language="c++",
)

setup(ext_modules=[extension], cmdclass={"build_ext": BuildExtension})
