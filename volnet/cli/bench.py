"""`volnet bench`: networks side by side with everything else that runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from volnet.cli.errors import one_line_errors
from volnet.cli.info import collect

IPEX_PYTHON = Path("build/ipex/bin/python")  # make ipex


def bench(
    networks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NETWORK]...",
            help="dynunet, plain_conv_unet, basic_unet, resnet50, luna16_retinanet; or module.path:factory "
            "or file.py:factory of yours. Without: the five.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Channels and spatial size, 1x96x96x96.", show_default=False)
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(help="Spatial size for the comparison with float64; else half.", show_default=False),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Volumes at once; again for more.")] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="To compute with; again for more.", show_default="all")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="float32 or bfloat16; again for both.", show_default="both")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Only peers with this in their name, and volnet; again for more.", show_default="all"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each peer runs.")] = 5,
    ipex_python: Annotated[
        Path, typer.Option(help="Python of an environment with IPEX, made by `make ipex`.")
    ] = IPEX_PYTHON,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json and bench.png.", show_default=False)
    ] = None,
) -> None:
    """Measure networks on volnet and on every peer that is installed: torch in both layouts, with its own and
    with a retaining malloc, Inductor, ONNX Runtime, OpenVINO, IPEX, CUDA.

    Each peer has a process of its own and its own best settings; rounds go round the peers. Latency, voxels a
    second, peak memory, energy where the system tells, and the error against float64, printed as a table.
    Run it on a machine that does nothing else.

    Examples:

    $ volnet bench basic_unet

    $ volnet bench dynunet --batch 1 --batch 2 --threads 8 --precision float32 --out results

    $ volnet bench my_networks.py:make_unet --size 1x96x96x96 --peer OpenVINO --peer torch
    """
    # Peers and torch's compilers are not needed by the other commands.
    from volnet.bench.networks import NETWORKS
    from volnet.bench.report import machine_line, plot, summary, table
    from volnet.bench.run import Case, measure

    with one_line_errors(ValueError):
        wanted_size, wanted_check = _sizes(size, "--size"), _sizes(check, "--check")
        if wanted_size is not None and len(wanted_size) != 4:
            raise ValueError(f"a size is channels and three spatial sizes, got {size}")
        if wanted_check is not None and len(wanted_check) != 3:
            raise ValueError(f"--check is three spatial sizes, got {check}")
        precisions = _precisions(precision)
        facts = collect()
        typer.echo(f"{machine_line(facts)}\n")
        cases: list[Case] = []
        for network in networks or [*NETWORKS]:
            for number in threads or [facts["threads"]["torch"]]:
                for volumes in batch or [1]:
                    case = measure(
                        network,
                        size=wanted_size,
                        check=wanted_check,
                        batch=volumes,
                        threads=number,
                        precisions=precisions,
                        only=peer or (),
                        rounds=rounds,
                        ipex_python=ipex_python if ipex_python.is_file() else None,
                        say=lambda line: typer.echo(line, err=True),
                    )
                    cases.append(case)
                    typer.echo("\n".join([*table(case), ""]))
                    if out is not None:
                        out.mkdir(parents=True, exist_ok=True)
                        record = {"machine": facts, "cases": [case.record() for case in cases]}
                        (out / "bench.json").write_text(json.dumps(record, indent=1))
                        plot(cases, out / "bench.png")
        typer.echo("\n".join(summary(cases)))


def _sizes(text: str | None, option: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split("x")
    if not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"{option} is sizes with an x between them, got {text}")
    return tuple(map(int, parts))


def _precisions(asked: list[str] | None) -> list[str]:
    known = ["float32", "bfloat16"]
    for name in asked or ():
        if name not in known:
            raise ValueError(f"--precision is float32 or bfloat16, got {name}")
    return asked or known
