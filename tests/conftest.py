"""Which tests run, and in what order. Light: the process that hands tests out imports nothing else."""

import os
from pathlib import Path

import pytest

# no network; one thread a process, to load weights too, as several share the cores; before the libraries that read
# these once
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", HF_DEACTIVATE_ASYNC_LOAD="1")

SHARED = Path(__file__).resolve().parents[2] / "shared"
SLOW = (
    *("test_ablate.py", "test_round_trips.py", "test_extending.py", "test_onnx.py", "test_formats.py", "test_kills.py"),
    *("test_tutorials.py", "test_load_checkpoint.py", "test_two_devices.py", "test_distributed.py", "test_support.py"),
    "test_commands.py",
)
"""Files that take long. They start first, so that at the end no process waits for one of them."""


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the processes that run tests."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        from tests import prepared

        config.pluginmanager.register(prepared)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # fuzzed tests last: the hook that watches them stays
    items.sort(key=lambda item: (item.path.name.startswith("test_fuzz"), item.path.name not in SLOW))
    missing = pytest.mark.skip(reason=f"the developers' material is not at {SHARED}")
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(missing)
