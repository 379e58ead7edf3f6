"""Two checkouts side by side: `python -m benchmarks.versions --before CHECKOUT`.

Every measurement is the command as a user types it, in a fresh process; the checkouts take turns, and every other round
the other one goes first. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
SCRIPT = "import sys; from lora_pl.cli.main import main; sys.exit(main(sys.argv[1:]))"
Figures = dict[str, float]


def lora_pl(checkout: Path, folder: Path, *arguments: str) -> float:
    """Run the command of a checkout in `folder`; wall-clock seconds."""
    environment = {**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{folder}", "HF_HUB_OFFLINE": "1"}
    environment |= {"STEP_CLOCK": str(folder / "clock.json")}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], cwd=folder, env=environment, capture_output=True)
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    return time.perf_counter() - started


def start_up(checkout: Path, folder: Path, encoder: str, steps: int) -> Figures:
    """The help of the command and of fit, in seconds."""
    return {
        "--help, s": lora_pl(checkout, folder, "--help"),
        "fit --help, s": lora_pl(checkout, folder, "fit", "--help"),
    }


def fit(checkout: Path, folder: Path, encoder: str, steps: int) -> Figures:
    """The median step of `fit`, in ms, and the process's peak memory in MiB."""
    flags = ["--model.encoder", encoder, "--data.source", "sample", "--run_name", "timed", "--trainer.logger", "false"]
    flags += ["--trainer.callbacks+=clock.StepClock", "--trainer.max_steps", str(steps), "--trainer.max_epochs", "-1"]
    lora_pl(checkout, folder, "fit", *flags, "--trainer.limit_val_batches", "0")
    measured = json.loads((folder / "clock.json").read_text(encoding="utf-8"))
    return {"step of fit, ms": 1e3 * measured["step"], "peak of fit, MiB": measured["peak"]}


def predict(checkout: Path, folder: Path, encoder: str, steps: int) -> Figures:
    """The whole of `predict`, with its start, on 20 sentences for each step; in seconds."""
    checkpoint = next((folder / "checkpoints" / "timed").glob("last.ckpt"))
    texts = [f"a film like {number % 97} others , and not a bad one" for number in range(20 * steps)]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    flags = ["--ckpt_path", str(checkpoint), "--input", "texts.txt", "--output", "answers.jsonl"]
    return {"predict, s": lora_pl(checkout, folder, "predict", *flags)}


MEASURES: tuple[Callable[[Path, Path, str, int], Figures], ...] = (start_up, fit, predict)


def one_round(checkout: Path, encoder: str, steps: int) -> Figures:
    """Everything once, in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clock.py").write_text(CLOCK, encoding="utf-8")
        return {key: value for measure in MEASURES for key, value in measure(checkout, folder, encoder, steps).items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="The other checkout, e.g. by `git worktree add`.")
    parser.add_argument("--encoder", default=EMBEDDED, help="A folder without weights gets random ones.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    encoder = random_encoder(Path(args.encoder)) if (Path(args.encoder) / "config.json").is_file() else args.encoder
    rounds: list[tuple[Figures, Figures]] = []
    for number in range(args.rounds):
        order = (args.before.resolve(), HERE) if number % 2 else (HERE, args.before.resolve())
        found = {checkout: one_round(checkout, encoder, args.steps) for checkout in order}
        rounds.append((found[args.before.resolve()], found[HERE]))
    print("| | before | now | now / before |\n| --- | ---: | ---: | ---: |")
    for key in rounds[0][0]:
        before, now = (median(one[side][key] for one in rounds) for side in (0, 1))
        ratio = median(one[1][key] / one[0][key] for one in rounds)
        print(f"| {key} | {before:,.2f} | {now:,.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
