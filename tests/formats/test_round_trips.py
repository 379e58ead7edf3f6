"""Every format by the program that it is for, in a fresh process that never imports lora_pl.

The other tests of formats run the same programs in this process, over more architectures and heads.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from lora_pl.formats.export import ExportOptions
from lora_pl.formats.exporting import export_checkpoint
from tests.formats.conftest import saved, texts_for
from tests.support import TINY_TERMS, assert_equal_to_rounding

CASES = {
    "hf": [("roberta", "linear", "sst2", "float32"), ("bert", "architecture", "rte", "bfloat16")],
    "peft": [("bert", "architecture", "rte", "float32"), ("roberta", "linear", "sst2", "bfloat16")],
    "onnx": [("bert", "linear", "rte", "float32")],  # ONNX Runtime's CPU has no bf16
}
"""By format: architecture, head, task, dtype."""
NEEDS = {"hf": [], "peft": ["peft"], "onnx": ["onnxruntime", "onnxscript"]}
TERMS = {"float32": TINY_TERMS, "bfloat16": 4}
"""In bf16 what a layer adds to the row is rounded, twice a layer."""

READERS = """
import json, sys

def hf(job):
    from transformers import pipeline
    texts = [t if isinstance(t, str) else {"text": t[0], "text_pair": t[1]} for t in job["texts"]]
    classify = pipeline("text-classification", model=job["folder"], truncation=True)
    rows = classify(texts, top_k=None, function_to_apply="none", batch_size=2)
    answers = [{row["label"]: row["score"] for row in answer} for answer in rows]
    return [[answer[label] for label in job["labels"]] for answer in answers]

def peft(job):
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

def onnx(job):
    import onnxruntime
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    columns = zip(*([t] if isinstance(t, str) else t for t in job["texts"]))
    session = onnxruntime.InferenceSession(job["folder"] + "/model.onnx")
    return session.run(None, dict(tokenizer(*map(list, columns), padding=True, return_tensors="np")))[0].tolist()

print(json.dumps([globals()[job["program"]](job) for job in json.load(sys.stdin)]))
assert "lora_pl" not in sys.modules
"""


def in_a_fresh_process(jobs: list[dict]) -> list[torch.Tensor]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", READERS], input=json.dumps(jobs), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [torch.tensor(rows) for rows in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def trips(make_model, tmp_path_factory) -> list[tuple[dict, torch.Tensor, torch.Tensor]]:
    """A job per export, the logits of predict, and those that the other program read."""
    jobs, expected = [], []
    for program, cases in CASES.items():
        if not all(map(find_spec, NEEDS[program])):
            continue
        for kind, head, task, dtype in cases:
            model, folder = make_model(kind, head=head, task=task), tmp_path_factory.mktemp(program)
            options = ExportOptions(dtype if program == "hf" else "float32")
            export_checkpoint(saved(model, folder), folder / "out", program, options, sentences=8)
            texts = texts_for(model)
            jobs.append({"program": program, "folder": str(folder / "out"), "texts": texts, "labels": model.label_names,
                         "base": model.hparams["encoder"], "dtype": dtype})  # fmt: skip
            expected.append(model.logits(texts))
    return list(zip(jobs, expected, in_a_fresh_process(jobs), strict=True))


@pytest.mark.parametrize("program", CASES)
def test_labels_and_logits_are_those_of_predict(program, trips):
    for package in NEEDS[program]:
        pytest.importorskip(package)
    own = [trip for trip in trips if trip[0]["program"] == program]
    assert len(own) == len(CASES[program])
    for job, logits, got in own:
        assert_equal_to_rounding(got, logits, TERMS[job["dtype"]], getattr(torch, job["dtype"]))
        if job["dtype"] == "float32":
            assert torch.equal(got.argmax(-1), logits.argmax(-1))
