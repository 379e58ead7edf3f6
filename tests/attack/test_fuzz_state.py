"""What lora_pl left on the disk, changed: the token cache, studies, parts of predictions, configurations of runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import assume
from hypothesis import strategies as st
from lightning.fabric import Fabric

from lora_pl.ablation import report
from lora_pl.ablation.grid import Trial
from lora_pl.ablation.study import SETTINGS, check_study
from lora_pl.ablation.table import COLUMNS, ResultTable, trial_rows
from lora_pl.data import texts
from lora_pl.data.examples import Examples
from lora_pl.data.texts import TextStream
from lora_pl.data.tokens import tokenize_cached
from lora_pl.predictions.file import predict_file
from lora_pl.training.resume.same_run import check_same_run
from tests.attack.fuzzing import counts, fuzz, told
from tests.attack.mutations import PIECES, changed_bytes, changed_values
from tests.attack.test_fuzz_checkpoints import Parsed, without_tensors
from tests.support import tiny_tokenizer


@counts
def test_token_cache(count, tmp_path):
    """A damaged cache is read as if it were not there."""
    tokenizer, examples = tiny_tokenizer("roberta"), Examples((["a fine film", "a dull plot"],), [1.0, 0.0])
    expected = tokenize_cached(tokenizer, examples, 8, tmp_path)
    (path,) = tmp_path.iterdir()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        tokens = told(tokenize_cached, tokenizer, examples, 8, tmp_path)
        for name in ("ids", "offsets", "second", "labels"):
            assert np.array_equal(getattr(tokens, name), getattr(expected, name)), name
        assert tokens.cut == expected.cut

    fuzz(count, changed_bytes(path.read_bytes()), check)


RANK = "model.lora.r"
TRIALS = [Trial("LoRA", seed, {RANK: rank}, {RANK: rank}) for seed in (0, 1) for rank in (2, 16)]
EPOCH = {"epoch": 1, "validation": 0.5, "metric": "accuracy", "train_loss": 0.7, "validation_loss": 0.7, "seconds": 1.0,
         "trainable": 8, "trainable_lora": 4, "trainable_head": 4, "pack": 1}  # fmt: skip
ROWS = [row for trial in TRIALS for row in trial_rows(trial, [EPOCH])]
STUDY = {
    "settings": {
        "model.encoder": "x",
        "data.task": "sst2",
        "data.train_sentences": None,
        "model.lora.rank_pattern": {},
    },
    "columns": {name: [row[name] for row in ROWS] for name in (*COLUMNS, RANK)},
    "curves": {"loss_curve": [[10, 0.7], [20, 0.6]]},
}


def table_of(columns: Any) -> pa.Table:
    """As Parquet takes them: values that fit no type as text, columns of other lengths cut or filled."""
    arrays = {}
    for name, values in columns.items() if isinstance(columns, dict) else ():
        values = [*(values if isinstance(values, list) else [values]), *([None] * len(ROWS))][: len(ROWS)]
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            arrays[name] = pa.array([repr(value) for value in values])
    return pa.table(arrays)


@counts
def test_studies(count, tmp_path, monkeypatch):
    """The table, the settings and the curves of a study, as far as the report without its drawings."""
    monkeypatch.setattr(
        report, "_figures", lambda folder, series: [report._curves(folder, one) for one in series] and {}
    )

    def read() -> None:
        check_study(tmp_path, STUDY["settings"])
        ResultTable(tmp_path).trials()
        report.write_report(tmp_path)

    def check(study: Any) -> None:
        assume(isinstance(study, dict) and study.keys() >= STUDY.keys())
        (tmp_path / SETTINGS).write_text(json.dumps(study["settings"]))
        pq.write_table(table_of(study["columns"]), tmp_path / "table.parquet")
        for trial in TRIALS:
            path = tmp_path / "trials" / trial.name / "metrics.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(study["curves"]))
        told(read)

    fuzz(count, changed_values(STUDY), check)


@counts
def test_study_bytes(count, tmp_path):
    ResultTable(tmp_path).add(ROWS)
    path = tmp_path / "table.parquet"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(lambda: ResultTable(tmp_path).trials())

    fuzz(count, changed_bytes(path.read_bytes()), check)


NAMES = ("plan.json", "00000000.jsonl", "00000001.jsonl", "00000009.jsonl", "1.jsonl", f"{'9' * 99}.jsonl", "notes.txt",
         "٣.jsonl", "0.jsonl/x")  # fmt: skip


@counts
@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_parts_of_predictions(ending, count, tmp_path, monkeypatch):
    """A folder of parts with other files in it, its plan or its parts changed: all rows, or an error."""
    monkeypatch.setattr(texts, "CHUNK", 2)
    monkeypatch.setattr(texts, "SHARD", 1)
    source, output = tmp_path / "x.txt", tmp_path / f"y{ending}"
    folder = Path(f"{output}.parts")
    source.write_text("a film\n" * 5)
    fabric = Fabric(accelerator="cpu", devices=1)

    def predict(stop: bool = False) -> int:
        def answers(rows: Any) -> Any:
            if stop and (folder / "00000001.jsonl").exists():
                raise KeyboardInterrupt
            return [{"text": text} for text in rows]

        return predict_file(TextStream(str(source), ["text"]), str(output), answers, {"checkpoint": "x"}, fabric)

    with pytest.raises(KeyboardInterrupt):
        predict(stop=True)
    plan, part = (folder / "plan.json").read_bytes(), (folder / "00000001.jsonl").read_bytes()
    contents = st.one_of(st.just(plan), st.just(part), changed_bytes(plan), changed_bytes(part))

    def check(files: dict[str, bytes]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        output.unlink(missing_ok=True)
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        written = told(predict)
        assert written in (None, 5) or files.get("plan.json") == plan, "another number of rows"
        assert (folder / "notes.txt").exists() == ("notes.txt" in files), "a file of somebody else's is gone"

    fuzz(count, st.dictionaries(st.sampled_from(NAMES), contents, max_size=5), check)


CONFIGURATION = {"data": {"task": "sst2", "batch_size": 8}, "model": {"lora": {"r": 2}, "learning_rate": 0.001},
                 "trainer": {"max_epochs": 2, "precision": "32-true"}, "seed_everything": 3}  # fmt: skip
OF_YAML = (b"&a [*a]", b"*b", b"!!python/object/apply:os.system ['touch harmed']", b"{" * 300, b"\t", b": :",
           b"1e999", b"- ", b"null", b"&x ", b"?", b"\x00", b"\xff", b"r: -1", b"9" * 5000, b"<<: ", b"/dev/zero",
           b"&a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nd: [*c,*c]\n")  # fmt: skip
yaml_files = st.one_of(
    changed_values(CONFIGURATION, [["gaussian"], {"class_path": "decoy.X"}], ["r", "max_epochs", "callbacks", "config"])
    .map(lambda values: yaml.safe_dump(values).encode("utf-8", "surrogatepass")),
    changed_bytes(yaml.safe_dump(CONFIGURATION).encode(), (*OF_YAML, *PIECES)),
)  # fmt: skip


@counts
def test_configurations(count, tmp_path):
    path = tmp_path / "x.yaml"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(Parsed, ["fit", "--config", str(path)])

    fuzz(count, yaml_files, check)


@counts
def test_configurations_of_runs(count, checkpoint):
    """The configuration beside a checkpoint, when the run is resumed."""
    folder = Path("checkpoints/run")
    folder.mkdir(parents=True)
    torch.save(without_tensors(checkpoint), folder / "last.ckpt")
    saved = folder / "config.yaml"

    def check(content: bytes) -> None:
        saved.write_bytes(content)
        told(Parsed, ["fit", "--resume", "--run_name", "run"])
        told(check_same_run, saved, CONFIGURATION)

    fuzz(count, yaml_files, check)
