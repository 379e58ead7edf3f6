"""Every `lora_pl` command of every page runs and exits with 0, from top to bottom, in a folder that has what it names.

There a tiny encoder is `roberta-base` and `MINILM`, a tiny GLUE download is `glue_data` and the hub, training takes two
batches, and of a study the first two trials are trained. What torchrun and srun start, or --trainer.devices, is one
process; `test_pages.py` checks the words of the programs that are not run (pip, pytest, tensorboard, mkdocs, the
benchmarks).
"""

import csv
import json
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lora_pl.ablation.study import one_after_another
from lora_pl.ablation.table import ResultTable
from lora_pl.cli import ablate
from tests.docs.pages import PAGES, ROOT, commands
from tests.support import WORDS, run_in_process, tiny_config, tiny_tokenizer

OURS = {page: found for page in PAGES if (found := [words for words in commands(page) if "lora_pl" in words])}
STAND_INS = {
    "--config ...": "--config configs/demo.yaml",
    "--ckpt_path ...": "--ckpt_path checkpoints/mine/best.ckpt",
    "--errors FILE": "--errors FILE.csv",
    "ENCODER FLAGS": "MINILM --model.learning_rate 2e-3",
    "train_sentences 250 1000 --vary trainer.max_epochs 5 10 20": "train_sentences 4 --vary trainer.max_epochs 1",
    "report DIR": "report logs/ablation/ablation",
    "VERB": "fit",
}
"""What the pages leave to their reader."""
SHORT = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 2"
ALONE = "--trainer.num_nodes 1 --trainer.devices 1 --trainer.strategy auto"
FROM_THE_HUB = ("configs/glue/", "configs/sst2_roberta_base.yaml")
"""Configurations whose sentences are the hub's."""
WRITTEN = ("--output", "--metrics", "--errors")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """roberta-base's length at a tiny width."""
    from transformers import AutoModel

    folder = tmp_path_factory.mktemp("roberta-base")
    torch.manual_seed(1)
    AutoModel.from_config(tiny_config("roberta", max_position_embeddings=514)).save_pretrained(folder)
    tokenizer = tiny_tokenizer("roberta")
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def furnished(encoder, glue_download, tmp_path_factory) -> Path:
    """A folder with the files that the pages name."""
    folder = tmp_path_factory.mktemp("furnished")
    for name, there in (("configs", ROOT / "configs"), ("roberta-base", encoder), ("MINILM", encoder)):
        (folder / name).symlink_to(there)
    shutil.copytree(glue_download, folder / "glue_data")
    write_tables(folder)
    for name, task in (("NAME", "sst2"), ("A", "sst2"), ("B", "rte"), ("MNLI", "mnli")):
        run(folder, *f"fit --config configs/glue/{task}.yaml --run_name {name}".split())
        (folder / name).symlink_to(folder / "checkpoints" / name)
    run(folder, "export", "--ckpt_path", "A/best.ckpt", "--format", "peft", "--output", "PEFT_FOLDER")
    (folder / "FILE_OR_FOLDER").symlink_to("PEFT_FOLDER")
    return folder


def write_tables(folder: Path) -> None:
    texts = [f"the {noun} is {word}" for noun in ("film", "plot", "cast") for word in WORDS[5:15]]
    tables = {
        "reviews.csv": [{"review": text, "stars": number % 3 + 1} for number, text in enumerate(texts)],
        "new.csv": [{"review": text} for text in texts],
        "posts.jsonl": [{"text": text, "topics": ["law", "sport"][: number % 3]} for number, text in enumerate(texts)],
        "rows.csv": [{"text": text, "text_pair": "a film", "who": ("sst2", "rte")[len(text) % 2]} for text in texts],
        "stanfordnlp/imdb/train.jsonl": [{"text": text, "label": number % 2} for number, text in enumerate(texts)],
        "stanfordnlp/imdb/test.jsonl": [{"text": text, "label": 1} for text in texts],
    }
    for split in ("train", "dev"):
        tables[f"glue_data/SICK/{split}.csv"] = [
            {"premise": text, "hypothesis": "a film", "label": number % 3} for number, text in enumerate(texts)
        ]
    (folder / "reviews.txt").write_text("\n".join(texts))
    for name, rows in tables.items():
        write_table(folder / name, rows)


def write_table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)


def run(folder: Path, *given: str, text_input: str | None = None) -> None:
    """The command, small enough for a test; the files that it is to write are there afterwards."""
    arguments = [*given, *smaller(*given)]
    done = run_in_process(arguments, folder, text_input=text_input)
    assert done.returncode == 0, f"lora_pl {' '.join(arguments)}\n{done.stderr[-3000:]}"
    written = [value for option, value in pairwise(given) if option in WRITTEN]
    assert not [name for name in written if not (folder / name).exists()], arguments


def smaller(verb: str, *given: str) -> list[str]:
    """What is added to a command that trains: few steps, one process, and what stands for large things or the hub's."""
    if verb not in ("fit", "ablate") or {"--help", "report"} & {*given}:
        return []
    flags = SHORT.split()
    if "--trainer.devices" in given:
        flags += ALONE.split()
    if "--data.source" not in given and any(name.startswith(FROM_THE_HUB) for name in given):
        flags += ["--data.source", "glue_data"]
    if "--data.train_sentences" in given:
        flags += ["--data.train_sentences", "8"]
    flags += ["--model.encoder", "roberta-base"]
    return [*flags, "--seeds", "1"] if verb == "ablate" else flags


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.parametrize("page", OURS)
def test_commands_run(page, furnished, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    trained: set[str] = set()

    def launch(units, run):
        """Two trials, if no study of the same arms has had them."""
        arms = " ".join(sorted({trial.arm for unit in units for trial in unit}))
        most = 0 if arms in trained else 2
        trained.add(arms)
        return one_after_another(units[:most], run)

    monkeypatch.setattr(ablate, "one_after_another", launch)
    folder = shutil.copytree(furnished, tmp_path / "page", symlinks=True)
    for name in re.findall(r"--run_name (\w+)", PAGES[page]):  # the page makes it
        shutil.rmtree(folder / "checkpoints" / name, ignore_errors=True)
    said = None
    for words in commands(page):
        if "lora_pl" in words:
            run(folder, *read_as(words[words.index("lora_pl") + 1 :]), text_input=said)
        said = words[1] if words[0] == "echo" else None


def test_the_commands_of_the_published_studies_resume_them(tmp_path, monkeypatch):
    """With their settings, and with no trial of theirs that would be run again."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(ROOT / "docs" / "studies", tmp_path / "docs" / "studies")
    left: list[str] = []
    for name in ("_prepare", "_check_models"):
        monkeypatch.setattr(f"lora_pl.cli.ablate.{name}", lambda *given: None)
    monkeypatch.setattr("lora_pl.cli.ablate.AblateCLI._joint_trials", lambda *given: 1)  # it reads the encoder
    monkeypatch.setattr("lora_pl.cli.ablate.write_report", lambda *given: given)

    def launch(units, run):
        left.extend(trial.name for unit in units for trial in unit)
        return []

    monkeypatch.setattr("lora_pl.cli.ablate.one_after_another", launch)
    for words in commands("docs/results.md"):
        if "--output" in words and "ablate" in words:
            table = ResultTable(tmp_path / words[words.index("--output") + 1])
            precision = [] if "--trainer.precision" in words else ["--trainer.precision", "bf16-mixed"]
            run_in_process([*words[1:], *precision], tmp_path, check=True)
            assert not table.trials() & {*left}
            left.clear()


def read_as(words: list[str]) -> list[str]:
    """As a reader would fill it in."""
    line = shlex.join(words)
    for there, here in STAND_INS.items():
        line = line.replace(there, here)
    return shlex.split(line)


def test_there_are_commands_to_run():
    assert sum(map(len, OURS.values())) > 40
