"""The networks of docs/networks.md on volnet and on everything else that runs them.

python benchmarks/networks.py                            # all five, with every peer that is installed
python benchmarks/networks.py dynunet --peer OpenVINO    # arguments of `volnet bench`
"""

import typer

from volnet.cli.bench import bench

if __name__ == "__main__":
    typer.run(bench)
