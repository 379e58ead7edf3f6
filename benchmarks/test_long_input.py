"""`predict` over five million lines: memory does not grow with the input (pytest benchmarks -m benchmark)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LINES = 5_000_000
PIPELINE = """
import json, resource, sys
from lightning.fabric import Fabric
from lora_pl.data.texts import TextStream
from lora_pl.predictions.file import predict_file

path, output, stop_after = sys.argv[1], sys.argv[2], int(sys.argv[3])
row = {"label": "positive", "score": 0.5, "probabilities": {"positive": 0.5, "negative": 0.5}}
peaks, chunks = [], 0


def answers(texts):
    global chunks
    if chunks == stop_after:
        raise KeyboardInterrupt
    chunks += 1
    if chunks in (500, 5000):
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return [{"text": text, **row} for text in texts]


fabric, written = Fabric(accelerator="cpu", devices=1), 0
try:
    written = predict_file(TextStream(path, ["text"]), output, answers, {"checkpoint": "none"}, fabric)
except KeyboardInterrupt:
    pass
peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps({"peaks": peaks, "written": written, "chunks": chunks}))
"""


def pipeline(path: Path, output: Path, stop_after: int) -> dict:
    """Reader and writer as `predict` has them, the model's answers made up."""
    command = [sys.executable, "-c", PIPELINE, str(path), str(output), str(stop_after)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.benchmark
@pytest.mark.parametrize("ending", [".txt", ".csv", ".jsonl"])
def test_five_million_lines_in_constant_memory(ending, tmp_path, capsys):
    path, output = tmp_path / f"x{ending}", tmp_path / "y.jsonl"
    shape = {".txt": "a film like many others, {}\n", ".csv": '1,"a film, {}"\n', ".jsonl": '{{"text": "a film {}"}}\n'}
    with path.open("w") as file:
        file.write("id,text\n" if ending == ".csv" else "")
        file.writelines(shape[ending].format(number) for number in range(LINES))
    stopped = pipeline(path, output, 6000)
    resumed = pipeline(path, output, -1)
    assert resumed["written"] == LINES
    assert resumed["chunks"] < LINES // 512 + 1 - 5000, "the parts that were there were made again"
    with output.open() as rows:
        for number, row in enumerate(rows):
            assert f' {number}"' in row
    peaks = stopped["peaks"] + resumed["peaks"]
    with capsys.disabled():
        print(f"\n{ending}: {LINES:,} lines, {path.stat().st_size >> 20} MiB in, peak {max(peaks) >> 10} MiB")
    assert max(peaks) - min(peaks) < 64 << 10
