"""Every format by the program that it is for, in a fresh process that never imports lora_pl.

{RoBERTa, BERT} x {linear, architecture head} x {fp32, bf16} x {a sentence, a pair}, one process per program.
"""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch

from lora_pl.formats.export import ExportOptions
from lora_pl.formats.exporting import export_checkpoint
from tests.formats.conftest import saved, texts_for

HEADS, DTYPES, TASKS = ("linear", "architecture"), ("float32", "bfloat16"), ("sst2", "rte")
MATRIX = list(itertools.product(("roberta", "bert"), HEADS, DTYPES, TASKS))
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}

PROGRAMS = {
    "hf": """
def logits(job):
    from transformers import pipeline
    texts = [t if isinstance(t, str) else {"text": t[0], "text_pair": t[1]} for t in job["texts"]]
    classify = pipeline("text-classification", model=job["folder"], truncation=True)
    rows = classify(texts, top_k=None, function_to_apply="none", batch_size=2)
    answers = [{row["label"]: row["score"] for row in answer} for answer in rows]
    return [[answer[label] for label in job["labels"]] for answer in answers]
""",
    "peft": """
def logits(job):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    base = AutoModelForSequenceClassification.from_pretrained(
        job["base"], num_labels=len(job["labels"]), dtype=job["dtype"])
    model = PeftModel.from_pretrained(base, job["folder"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    columns = zip(*([t] if isinstance(t, str) else t for t in job["texts"]))
    with torch.inference_mode():
        return model(**tokenizer(*map(list, columns), padding=True, return_tensors="pt")).logits.tolist()
""",
    "onnx": """
def logits(job):
    import onnxruntime
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    columns = zip(*([t] if isinstance(t, str) else t for t in job["texts"]))
    session = onnxruntime.InferenceSession(job["folder"] + "/model.onnx")
    return session.run(None, dict(tokenizer(*map(list, columns), padding=True, return_tensors="np")))[0].tolist()
""",
}
MAIN = """
import json, sys
print(json.dumps([logits(job) for job in json.load(sys.stdin)]))
assert "lora_pl" not in sys.modules
"""


def in_a_fresh_process(program: str, jobs: list[dict]) -> list[torch.Tensor]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS[program] + MAIN], input=json.dumps(jobs), capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [torch.tensor(rows) for rows in json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.parametrize("program", PROGRAMS)
def test_labels_and_logits_are_those_of_predict(program, make_model, tmp_path):
    for package in {"peft": ["peft"], "onnx": ["onnxruntime", "onnxscript"]}.get(program, []):
        pytest.importorskip(package)
    jobs, expected = [], []
    for index, (kind, head, dtype, task) in enumerate(MATRIX):
        if program == "onnx" and dtype != "float32":
            continue  # ONNX Runtime's CPU has no bf16
        model = make_model(kind, head=head, task=task)
        folder = tmp_path / str(index)
        folder.mkdir()
        options = ExportOptions(dtype if program == "hf" else "float32")
        export_checkpoint(saved(model, folder), folder / "out", program, options, sentences=8)
        texts, base = texts_for(model), model.hparams["encoder"]
        jobs.append(
            {"folder": str(folder / "out"), "texts": texts, "labels": model.label_names, "base": base, "dtype": dtype}
        )
        expected.append((model, texts, dtype))
    for job, (model, texts, dtype), got in zip(jobs, expected, in_a_fresh_process(program, jobs), strict=True):
        logits = model.logits(texts)
        close = TOLERANCE[dtype] * max(1.0, logits.abs().max().item())
        torch.testing.assert_close(got, logits, rtol=0, atol=close, msg=lambda m, job=job: f"{job}: {m}")
        if dtype == "float32":
            assert torch.equal(got.argmax(-1), logits.argmax(-1))
