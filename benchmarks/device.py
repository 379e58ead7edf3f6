"""Where peers run: its clock and its memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_pl.lora.int8 import int8_is_fast


@dataclass(frozen=True)
class Device:
    """A GPU (`cuda`), or the CPU (its memory on Linux alone)."""

    name: str = "cpu"

    @property
    def is_gpu(self) -> bool:
        return self.name == "cuda"

    def __str__(self) -> str:
        return torch.cuda.get_device_name() if self.is_gpu else "CPU"

    def can_run(self, peer: str) -> bool:
        """Whether it has what a peer needs: an int8 base a CPU with AVX512_VNNI, CUDA graphs a GPU."""
        if "graphs" in peer:
            return self.is_gpu
        return "int8" not in peer or (not self.is_gpu and int8_is_fast())

    def seconds(self, call: Callable[[], object]) -> float:
        """Of the call, until the device has nothing left to do."""
        self._wait()
        started = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - started

    def used(self) -> float:
        """MiB that tensors take on a GPU, resident MiB of the process on the CPU."""
        return torch.cuda.memory_allocated() / 2**20 if self.is_gpu else status("VmRSS")

    def forget_peak(self) -> None:
        """Let `peak` be that from now on."""
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        """The most MiB `used` since `forget_peak`."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.is_gpu else status("VmHWM")

    def _wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()


CPU = Device()


def status(field: str) -> float:
    """A line of `/proc/self/status`, in MiB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
