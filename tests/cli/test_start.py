"""What the package costs before it does anything."""

import subprocess
import sys
import time


def seconds(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - started


def test_import_brings_neither_transformers_nor_datasets():
    script = "import lora_pl, sys; print({'torch', 'transformers', 'datasets', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_command_line_brings_no_datasets():
    """Transformers comes with Lightning, by way of torchmetrics."""
    script = "import lora_pl.cli.trainer, sys; print({'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_help_answers_fast():
    help_, lightning = (
        min(seconds(*command) for _ in range(2))
        for command in (("-m", "lora_pl", "--help"), ("-c", "import lightning.pytorch.cli"))
    )
    assert help_ < 1.5 * lightning
