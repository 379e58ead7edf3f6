"""The start of the verbs, two checkouts side by side: `python -m benchmarks.start --before CHECKOUT`.

Every command runs in a fresh process, on the embedded encoder; the checkouts take turns, and every other round the
other one goes first. Medians over the rounds of wall-clock and CPU seconds, and how many modules are imported.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.versions import HERE, lora_pl

SCRIPT = """
import sys
from lora_pl.cli.main import main
code = main(sys.argv[1:])
open("modules", "w").write(str(len(sys.modules)))
sys.exit(code)
"""
CKPT = ("--ckpt_path", "checkpoints/timed/last.ckpt")
VERBS = {
    "predict, one sentence": ("predict", *CKPT, "--input", "one.txt"),
    "predict --adapter": ("predict", "--adapter", "a=checkpoints/timed/last.ckpt", "--input", "one.txt"),
    "params": ("params", "--ranks", "4"),
    "export --format adapter": ("export", *CKPT, "--format", "adapter", "--output", "exported"),
    "--help": ("--help",),
}
Figures = tuple[float, float, float]


def started(checkout: Path, folder: Path, verb: str) -> Figures:
    """Wall-clock seconds, CPU seconds and modules of a verb."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    shutil.rmtree(folder / "exported", ignore_errors=True)
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", SCRIPT, *VERBS[verb]]
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    wall, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, float((folder / "modules").read_text())


def main() -> None:
    """Train a few steps, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="The other checkout, e.g. by `git worktree add`.")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sides = (args.before.resolve(), HERE)
    found: dict[tuple[str, Path], list[Figures]] = {(verb, side): [] for verb in VERBS for side in sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "one.txt").write_text("A fine film.\n", encoding="utf-8")
        flags = ("--data.source", "sample", "--run_name", "timed", "--trainer.max_steps", "5")
        lora_pl(HERE, folder, "fit", *flags, "--trainer.limit_val_batches", "0", "--trainer.logger", "false")
        for number in range(args.rounds):
            for verb in VERBS:
                for side in sides if number % 2 else sides[::-1]:
                    found[verb, side].append(started(side, folder, verb))
    print("| | wall, s: before | now | CPU, s: before | now | modules: before | now |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for verb in VERBS:
        columns = [median(one[what] for one in found[verb, side]) for what in range(3) for side in sides]
        shown = [*(f"{value:,.2f}" for value in columns[:4]), *(f"{value:,.0f}" for value in columns[4:])]
        print(f"| {verb} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
