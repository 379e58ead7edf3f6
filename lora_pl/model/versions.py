"""What a file was made with."""

import sys
from importlib.metadata import version

import torch

from lora_pl import __version__


def versions() -> dict[str, str]:
    """The versions of lora_pl, Python and the libraries that the numbers depend on."""
    libraries = ("lightning", "transformers", "numpy")
    # torch's own says which build it is (2.13.0+cpu)
    own = {"lora_pl": __version__, "python": sys.version.split()[0], "torch": str(torch.__version__)}
    return {**own, **{name: version(name) for name in libraries}}
