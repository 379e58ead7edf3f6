"""Many inputs, each within a time and a memory, none of which may run code of its own or ask on standard input."""

import contextlib
import faulthandler
import functools
import io
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lora_pl.errors import UserError
from lora_pl.lora import LoRAError

FEW, MANY = 20, 10_000
counts = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.attack)])
MEMORY = 400 << 20
"""Bytes by which one input may raise the process's peak."""
SECONDS = 5
"""Of the processor, for one input; C code that does not return is ended, and the process with it, after 60."""
LONGEST = 3000
"""Characters of a line that is printed."""
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect",
             "socket.getaddrinfo", "builtins.input", "pty.spawn")  # fmt: skip
DECODER = [sys.executable, "-P", "-m", "lora_pl.data.parquet"]
"""The command that may be run: Parquet is decoded by a process that the system limits."""
INSTALLED = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "<")
"""Where code may come from."""


class Refused(BaseException):
    """Nothing that is under attack catches this."""


def fuzz(count: int, inputs: st.SearchStrategy[Any], check: Callable[[Any], object]) -> None:
    """`check(input)` for that many of `inputs`."""

    @settings(max_examples=count, deadline=None, database=None, derandomize=True, report_multiple_bugs=False,
              phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(inputs)
    def run(content: Any) -> None:
        with bounded():
            check(content)

    run()


def told(call: Callable[..., object], *arguments: Any) -> Any:
    """The call's result, or None where it raises a UserError of one or two lines; what it prints is readable too."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return call(*arguments)
    except (UserError, LoRAError) as error:
        _require_readable(str(error), most=2)
    finally:
        _require_readable(printed.getvalue(), most=100)


def _require_readable(text: str, most: int) -> None:
    lines = text.strip().split("\n")
    assert len(lines) <= most, f"{len(lines)} lines"
    assert all(map(str.isprintable, lines)), lines
    assert all(len(line) <= LONGEST for line in lines), f"{max(map(len, lines))} characters"


@contextlib.contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Fails where the block takes more than `seconds` or `MEMORY`, or runs code that is not installed."""
    before, started = _peak(restart=True), time.process_time()
    _watch.seen = []
    with contextlib.suppress(Refused), _limited(seconds):
        yield
    assert not _watch.seen, _watch.seen
    assert time.process_time() - started < seconds
    assert _peak() - before < MEMORY, f"{(_peak() - before) >> 20} MiB"


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def refuse(signum: int, frame: object) -> None:
        _watch.seen.append("out of time")
        raise Refused

    earlier = signal.signal(signal.SIGPROF, refuse)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)
    _install_watch()
    _watch.on = True
    try:
        yield
    finally:
        _watch.on = False
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, earlier)


class Watch:
    """An audit hook, which can't be taken out again but turned off."""

    on, seen = False, list[str]()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what is forbidden, and stop it."""
        if not self.on:
            return
        foreign = event == "exec" and not getattr(arguments[0], "co_filename", "<").startswith(INSTALLED)
        decodes = event == "subprocess.Popen" and arguments[1][: len(DECODER)] == DECODER
        if foreign or (event in FORBIDDEN and not decodes):
            self.seen.append(f"{event} {arguments}"[:300])
            raise Refused


_watch = Watch()


@functools.cache
def _install_watch() -> None:
    """Once, and not before a test needs it: every `id()` then takes ten times as long."""
    sys.addaudithook(_watch)


def _peak(restart: bool = False) -> int:
    """The most bytes that the process has held since the last restart; Linux alone tells."""
    try:
        if restart:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) << 10
