"""`volnet phantom`: a made-up chest CT whose nodules are known."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from volnet.cli.errors import one_line_errors
from volnet.cli.tables import planted_table
from volnet.report import staged_folder

if TYPE_CHECKING:
    from volnet.data.phantom import PlantedNodule

CT_FOLDER = "ct"
TRUTH_FILE = "truth.json"

Seed = Annotated[int, typer.Option(min=0, help="The same seed makes the same chest.")]
Nodules = Annotated[int, typer.Option(min=0, help="How many nodules to plant.")]


def phantom(
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder to write; made if it is not there."),
    ],
    seed: Seed = 0,
    nodules: Nodules = 5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier phantom.")] = False,
) -> None:
    """Write a made-up chest CT with nodules at known places.

    OUT/ct is a DICOM series; OUT/truth.json says where the nodules are: center_voxel is (d, h, w),
    center_lps is (x, y, z) in mm.

    Examples:

    $ volnet phantom chest

    $ volnet phantom chest --seed 7 --nodules 12 --overwrite

    $ volnet detect chest/ct --out report
    """
    with one_line_errors(), staged_folder(out, overwrite=overwrite) as folder:
        planted = write_phantom(folder, seed=seed, nodules=nodules)
    console = Console()
    console.print(planted_table(planted))
    console.print(f"CT: {out / CT_FOLDER}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"Truth: {out / TRUTH_FILE}", highlight=False, soft_wrap=True, markup=False)


def write_phantom(folder: Path, *, seed: int, nodules: int) -> list[PlantedNodule]:
    """Write `ct/` and `truth.json` into `folder`, and return what was planted."""
    from volnet.data.dicom_write import write_dicom_series
    from volnet.data.phantom import chest_phantom

    with Console(stderr=True).status("Making the phantom"):
        try:
            ct, planted = chest_phantom(seed=seed, nodules=nodules)
        except ValueError as error:  # more nodules than the lungs have room for
            raise typer.BadParameter(str(error)) from error
        write_dicom_series(ct, folder / CT_FOLDER)
    truth = {
        "schema": "volnet.phantom",
        "schema_version": "1.0",
        "seed": seed,
        "series_uid": ct.series_uid,
        "nodules": [asdict(nodule) for nodule in planted],
    }
    (folder / TRUTH_FILE).write_text(json.dumps(truth, indent=2) + "\n", encoding="utf-8")
    return planted
