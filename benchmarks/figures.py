"""Writes every measured table of the documentation anew: `make figures`, on a machine that does nothing else.

A page says where its tables come from; what is between such a pair of lines is replaced by the tables that
the command prints:

    <!-- measured by: python benchmarks/accuracy.py -->
    <!-- end -->
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- measured by: python (.*?) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def tables(command: str) -> str:
    """What ``python command`` prints of tables, and of the line about the machine above them."""
    print(f"python {command}", file=sys.stderr, flush=True)
    words = [sys.executable, *shlex.split(command)]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\npython {command} failed: no page is changed any more")
    kept = [line for line in done.stdout.splitlines() if re.match(r"\||$|.* threads, .*; torch ", line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")


def main() -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        measured = BLOCK.sub(lambda block: f"{block[1]}{tables(block[2])}\n{block[3]}", text)
        page.write_text(measured, encoding="utf-8")


if __name__ == "__main__":
    main()
