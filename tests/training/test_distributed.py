"""Two processes give the numbers of one."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lora_pl import LoRAClassifier, Run, SentenceDataModule
from lora_pl.storage import checkpoint
from lora_pl.storage.checkpoint import read_checkpoint
from tests.processes import run_ranks
from tests.support import TINY_TERMS, rounding

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")

STEPS = 8
PRECISE = {"precision": "32-true", "accelerator": "cpu", "logger": False}


class Seen(Callback):
    """Weights at start and end, and the state that the first step's masks are drawn from."""

    def __init__(self):
        self.found = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.found:
            self.found = {"draws": digest([torch.get_rng_state()]), "start": weights(pl_module)}

    def on_train_end(self, trainer, pl_module):
        self.found["end"] = weights(pl_module)


def weights(model: LoRAClassifier) -> str:
    return digest(model.state_dict().values())


def digest(tensors) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def measure(encoder: str, source: str, processes: int, fits: bool) -> None:
    """What a process of so many measures and saves, in a file of its own."""
    save, saved, seen = checkpoint._save, [], {}
    checkpoint._save = lambda content, path: (saved.append(path), save(content, path))
    devices = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto", **PRECISE}

    def made(accumulate: int = 1, dropout: float = 0.0, **lora) -> tuple[LoRAClassifier, SentenceDataModule]:
        seed_everything(0)
        size = 8 // accumulate // processes
        data = SentenceDataModule(source=source, encoder=encoder, batch_size=size, eval_batch_tokens=24)
        return LoRAClassifier(encoder=encoder, learning_rate=1e-3, dropout=dropout, lora=lora), data

    def fit(name: str, steps: int, accumulate=1, resume: str | None = None, dropout=0.0, **lora) -> None:
        run = Run(name, save_every_steps=4, save_every_minutes=None, checkpoints=".", ckpt_path=resume)
        options = {"max_epochs": 100, "max_steps": steps, "accumulate_grad_batches": accumulate}
        run.fit(*made(accumulate, dropout, **lora), callbacks=seen.setdefault(name, Seen()), **options, **devices)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    model, data = made()
    metrics = Trainer(**devices, **quiet).validate(model, data, verbose=False)[0]
    metrics["confusion"] = model.metrics.of("val").class_scores().confusion.tolist()
    if fits:
        fit("plain", STEPS)
        fit("accumulated", STEPS, accumulate=2)
        fit("whole", 12, dropout=0.1)
        fit("part", 7, dropout=0.1)
        fit("rest", 12, dropout=0.1, resume="part/last.ckpt")
        fit("eva", 4, init="eva", r=5, eva_rho=2.0, eva_batches=1, target_modules="all-linear", dropout=0.1)
    found = {**metrics, "saved": len(saved), "seen": {name: each.found for name, each in seen.items()}}
    Path(f"result{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(found))


def results(folder: Path, encoder: str, source: Path, processes: int, fits: bool = False) -> list[dict]:
    """What each process measures and saves."""
    run_ranks(processes, folder, measure, encoder, str(source), processes, fits)
    return [json.loads((folder / f"result{rank}.json").read_text()) for rank in range(processes)]


def source_of(folder: Path, glue_folder: Path, sentences: int) -> Path:
    """The tiny task with a validation split of so many sentences."""
    head, *rows = (glue_folder / "dev.tsv").read_text().splitlines()
    folder.mkdir()
    (folder / "train.tsv").write_text((glue_folder / "train.tsv").read_text())
    (folder / "dev.tsv").write_text("\n".join([head, *(rows[i % len(rows)] for i in range(sentences))]) + "\n")
    return folder


@pytest.fixture(scope="module")
def fits(tiny_encoder, glue_folder, tmp_path_factory) -> dict[int, tuple[Path, list[dict]]]:
    """The same validation and fits by one process and by two: folder and results."""
    source = source_of(tmp_path_factory.mktemp("uneven") / "SST-2", glue_folder, 47)
    folders = {processes: tmp_path_factory.mktemp(f"by{processes}") for processes in (1, 2)}
    return {n: (folder, results(folder, tiny_encoder(), source, n, True)) for n, folder in folders.items()}


def test_metrics_are_exact_over_a_split_that_does_not_divide(fits):
    """47 sentences over two processes: a sampler that repeats one would move the accuracy."""
    (one,), (two, _) = (fits[n][1] for n in (1, 2))
    assert two["val/accuracy"] == pytest.approx(one["val/accuracy"], abs=1e-7)
    assert two["val/loss"] == pytest.approx(one["val/loss"], abs=rounding(TINY_TERMS))
    assert two["confusion"] == one["confusion"]
    assert sum(map(sum, two["confusion"])) == 47


@pytest.mark.parametrize("name", ["plain", "accumulated"])
def test_two_processes_train_what_one_does_with_the_same_global_batch(name, fits):
    """Packed batches, no dropout (each process draws masks of its own)."""
    one, two = (read_checkpoint(fits[n][0] / name / "last.ckpt") for n in (1, 2))
    assert one["global_step"] == two["global_step"] == STEPS
    for key, tensor in one["state_dict"].items():
        # a step of AdamW moves a weight by its learning rate at most
        close = rounding(2 * TINY_TERMS, scale=STEPS * 1e-3)
        torch.testing.assert_close(two["state_dict"][key], tensor, rtol=0, atol=close)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_of_several_processes_is_bit_identical(processes, fits):
    whole, rest = (read_checkpoint(fits[processes][0] / name / "last.ckpt") for name in ("whole", "rest"))
    assert rest["global_step"] == whole["global_step"] == 12
    assert all(torch.equal(rest["state_dict"][key], tensor) for key, tensor in whole["state_dict"].items())
    assert len(rest["lora_pl_resume"]["processes"]) == processes


def test_processes_have_the_same_weights_and_masks_of_their_own(fits):
    first, second = ([result["seen"] for result in fits[2][1]][rank] for rank in (0, 1))
    for name, seen in first.items():
        assert (seen["start"], seen["end"]) == (second[name]["start"], second[name]["end"])
        assert seen["draws"] != second[name]["draws"]


def test_processes_take_the_matrices_and_ranks_of_one(fits):
    """Each has looked at batches of its own."""
    found = [read_checkpoint(fits[n][0] / "eva" / "last.ckpt") for n in (1, 2)]
    patterns = [each["hyper_parameters"]["lora"]["rank_pattern"] for each in found]
    assert all(patterns)
    for pattern, each in zip(patterns, found, strict=True):
        for name, rank in pattern.items():
            assert each["state_dict"][f"encoder.{name}.lora_A"].shape[0] == rank


def test_one_process_writes(fits):
    folder, (first, second) = fits[2]
    assert first["saved"] > 10
    assert second["saved"] == 0
    written = {path.name for path in (folder / "whole").iterdir()}
    assert written == {"best.ckpt", "last.ckpt", "config.yaml", "confusion.png"}


@pytest.mark.faults
def test_872_sentences_over_three_processes(tiny_encoder, glue_folder, tmp_path):
    """The size of SST-2's validation split: every process count measures the same."""
    source = source_of(tmp_path / "SST-2", glue_folder, 872)
    one, three = (results(tmp_path, tiny_encoder(), source, n)[0]["val/accuracy"] for n in (1, 3))
    assert one == pytest.approx(three, abs=1e-7)
    assert one * 872 == pytest.approx(round(one * 872), abs=1e-3)
