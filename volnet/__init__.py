"""volnet: 3-D deep learning on CPUs."""

from importlib.metadata import version

from volnet import isa, memory, nn, ops

__version__ = version("volnet")
__all__ = ["__version__", "isa", "memory", "nn", "ops"]
