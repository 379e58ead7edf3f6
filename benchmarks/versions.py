"""Two checkouts side by side: `python -m benchmarks.versions --before CHECKOUT`.

Every measurement is the command as a user types it, in a fresh process; the checkouts take turns, and every other round
the other one goes first. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.peers import random_encoder
from lora_pl.encoder import EMBEDDED

HERE = Path(__file__).resolve().parents[1]
CLOCK = """
import json, os, resource, time
from lightning.pytorch import Callback

class StepClock(Callback):
    def __init__(self):
        self.at = []

    def on_train_batch_end(self, *args):
        self.at.append(time.perf_counter())

    def on_fit_end(self, *args):
        steps = sorted(b - a for a, b in zip(self.at[10:], self.at[11:]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with open(os.environ["STEP_CLOCK"], "w") as file:
            json.dump({"step": steps[len(steps) // 2], "peak": peak}, file)
"""
SCRIPT = """
import atexit, sys
from lora_pl.cli.main import main
atexit.register(lambda: open("modules", "w").write(str(len(sys.modules))))
sys.exit(main(sys.argv[1:]))
"""
CKPT = ("--ckpt_path", "checkpoints/timed/last.ckpt")
VERBS = {
    "--help": ("--help",),
    "fit --help": ("fit", "--help"),
    "predict, one sentence": ("predict", *CKPT, "--input", "one.txt"),
    "predict --adapter": ("predict", "--adapter", f"a={CKPT[1]}", "--input", "one.txt"),
    "params": ("params", "--ranks", "4"),
    "export --format adapter": ("export", *CKPT, "--format", "adapter", "--output", "exported"),
}
Figures = dict[str, float]


def lora_pl(checkout: Path, folder: Path, *arguments: str) -> Figures:
    """Run the command of a checkout in `folder`."""
    environment = {**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{folder}", "HF_HUB_OFFLINE": "1"}
    environment |= {"STEP_CLOCK": str(folder / "clock.json")}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], cwd=folder, env=environment, capture_output=True)
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"s": wall, "CPU s": cpu, "modules": float((folder / "modules").read_text())}


def start_up(checkout: Path, folder: Path) -> Figures:
    """Verbs that have next to nothing to do."""
    (folder / "one.txt").write_text("A fine film.\n", encoding="utf-8")
    found = {verb: lora_pl(checkout, folder, *arguments) for verb, arguments in VERBS.items()}
    return {f"{verb}, {name}": value for verb, figures in found.items() for name, value in figures.items()}


def fit(checkout: Path, folder: Path, encoder: str, steps: int) -> Figures:
    """The median step of `fit`, in ms, and the process's peak memory in MiB."""
    flags = ["--model.encoder", encoder, "--data.source", "sample", "--run_name", "timed", "--trainer.logger", "false"]
    flags += ["--trainer.callbacks+=clock.StepClock", "--trainer.max_steps", str(steps), "--trainer.max_epochs", "-1"]
    lora_pl(checkout, folder, "fit", *flags, "--trainer.limit_val_batches", "0")
    measured = json.loads((folder / "clock.json").read_text(encoding="utf-8"))
    return {"step of fit, ms": 1e3 * measured["step"], "peak of fit, MiB": measured["peak"]}


def predict(checkout: Path, folder: Path, steps: int) -> Figures:
    """The whole of `predict`, with its start, on 20 sentences for each step; in seconds."""
    texts = [f"a film like {number % 97} others , and not a bad one" for number in range(20 * steps)]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    figures = lora_pl(checkout, folder, "predict", *CKPT, "--input", "texts.txt", "--output", "answers.jsonl")
    return {"predict, s": figures["s"]}


def one_round(checkout: Path, encoder: str, steps: int) -> Figures:
    """Everything once, in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clock.py").write_text(CLOCK, encoding="utf-8")
        figures = fit(checkout, folder, encoder, steps)
        return figures | start_up(checkout, folder) | predict(checkout, folder, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="The other checkout, e.g. by `git worktree add`.")
    parser.add_argument("--encoder", default=EMBEDDED, help="A folder without weights gets random ones.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    encoder = random_encoder(Path(args.encoder)) if (Path(args.encoder) / "config.json").is_file() else args.encoder
    sides, rounds = (args.before.resolve(), HERE), []
    for number in range(args.rounds):
        found = {side: one_round(side, encoder, args.steps) for side in (sides if number % 2 else sides[::-1])}
        rounds.append([found[side] for side in sides])
    print("| | before | now | now / before |\n| --- | ---: | ---: | ---: |")
    for key in rounds[0][0]:
        before, now = (median(one[side][key] for one in rounds) for side in (0, 1))
        ratio = median(one[1][key] / one[0][key] for one in rounds)
        print(f"| {key} | {before:,.2f} | {now:,.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
