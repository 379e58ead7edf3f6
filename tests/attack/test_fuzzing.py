"""The watch over hostile input sees what it is there for."""

import os
import subprocess
import sys

import pytest

from lora_pl.errors import UserError
from lora_pl.lora import LoRAError
from tests.attack.fuzzing import MEMORY, bounded, told


def endless() -> None:
    while True:
        pass


def raw() -> None:
    print("\x1b[2J", file=sys.stderr)


def swallowed() -> None:
    """As a library that takes any error for damage."""
    try:
        os.system("true")
    except Exception:
        raise UserError("x", "damaged") from None


@pytest.mark.parametrize("harm", [endless, swallowed, raw, input, lambda: bytearray(2 * MEMORY),
                                  lambda: subprocess.run("true", check=True),
                                  lambda: exec(compile("", "/tmp/hostile.py", "exec"))])  # fmt: skip
def test_harm_is_seen(harm):
    with pytest.raises(AssertionError), bounded(seconds=0.2):
        told(harm)


@pytest.mark.parametrize("said", ["a\nb\nc", "\x1b[2J", "x" * 5000])
def test_an_error_that_is_hard_to_read_is_seen(said):
    def refuse() -> None:
        raise LoRAError("x", said)  # escapes nothing itself

    with pytest.raises(AssertionError):
        told(refuse)


def test_what_is_in_order_passes():
    with bounded(seconds=0.2):
        assert told(lambda: 3) == 3
