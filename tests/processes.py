"""Processes of their own, without the seconds of imports: forks of a server that has done them."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path

OUT, ERR = "stdout.txt", "stderr.txt"


def start(folder: Path, function: Callable[..., int | None], *arguments: object, **environment: str) -> BaseProcess:
    """`function(*arguments)` in a process whose working folder is `folder`; what it prints is added to files there.

    The function is one of a module's; what it returns is the exit code.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    environment = {**os.environ, "COLUMNS": "100", **environment}
    process = context.Process(target=_inside, args=(str(folder), environment, function, arguments))
    process.start()
    return process


def _inside(folder: str, environment: dict[str, str], function: Callable[..., int | None], arguments: tuple) -> None:
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, name in ((sys.stdout, OUT), (sys.stderr, ERR)):  # the descriptors: processes started here have them too
        with open(name, "a") as file:
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(1)
    rank_zero_only.rank = int(environment.get("LOCAL_RANK", 0))  # read from the environment when it was imported
    sys.exit(function(*arguments))


def command(*arguments: str) -> int:
    """`lora_pl ARGUMENTS`, for `start`."""
    from lora_pl.cli.main import main

    # by these Lightning starts it again for each device
    sys.argv = ["lora_pl", *arguments]
    sys.modules["__main__"].__spec__ = find_spec("lora_pl.__main__")
    return main(list(arguments))


def finish(folder: Path, *processes: BaseProcess, seconds: float = 600) -> None:
    """Waits for the processes, which end without an error."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert set(codes) == {0}, f"{codes} " + "".join((folder / name).read_text()[-3000:] for name in (OUT, ERR))


def run(folder: Path, function: Callable[..., int | None], *arguments: object) -> str:
    """What `function(*arguments)` prints in a process of its own."""
    finish(folder, start(folder, function, *arguments))
    return (folder / OUT).read_text()


def run_ranks(count: int, folder: Path, function: Callable[..., int | None], *arguments: object) -> None:
    """As `torchrun` would: so many processes of one job, each with its rank in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    finish(folder, *(start(folder, function, *arguments, **job, LOCAL_RANK=str(rank)) for rank in range(count)))
