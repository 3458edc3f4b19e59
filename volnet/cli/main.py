"""The typer application that the `volnet` command runs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from volnet import __version__
from volnet.cli.bench import bench
from volnet.cli.demo import demo
from volnet.cli.detect import detect
from volnet.cli.info import info
from volnet.cli.phantom import phantom
from volnet.cli.train import train, train_detector

app = typer.Typer(
    name="volnet",
    help="""3-D deep learning on CPUs, and lung nodules in chest CTs found with it.

    $ volnet demo --out demo             # a made-up chest, its nodules found

    $ volnet detect scan/ --out report   # a CT of yours; open report/report.html

    $ volnet info                        # what this machine has, and what volnet uses of it

    $ volnet bench basic_unet            # a network on volnet and on everything else that runs it

    $ volnet train config.toml           # a network of yours on volumes of yours

    For research use only: volnet is not a medical device.
    """,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # A traceback with local variables would print the patient's name.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        Console().print(f"volnet {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that come before a subcommand."""


for command in (detect, demo, phantom, info, bench, train):
    app.command()(command)
app.command("train-detector")(train_detector)

if __name__ == "__main__":
    app(prog_name="volnet")
