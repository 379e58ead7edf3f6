"""`benchmarks.gpu` on the CPU and the embedded encoder: on a GPU only the device differs."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

import lora_pl
from benchmarks import gpu, training
from benchmarks.device import CPU

MINI = Path(lora_pl.__file__).parent / "encoder" / "mini"
SMALL = ["--accelerator", "cpu", "--encoder", str(MINI), "--threads", "1", "--rounds", "1", "--batch_sizes", "2"]
SMALL += ["--counts", "1", "2", "--joint_batch_size", "2", "--steps", "2", "--sentences", "2", "--minutes", "60"]


def report(tmp_path, *arguments) -> dict[str, list[list[str]]]:
    """The cells of each table by its title, without its header."""
    gpu.main([*SMALL, *arguments, "--output", str(tmp_path / "gpu.md")])
    tables = {}
    for part in (tmp_path / "gpu.md").read_text().split("\n### ")[1:]:
        title, *lines = part.splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        assert {len(row) for row in rows} == {len(rows[0])}
        tables[title] = rows[2:]
    return tables


@pytest.fixture(autouse=True)
def _embedded_sentences(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "SHARED", tmp_path)
    monkeypatch.setattr(gpu, "START", "fork")  # inherits it, and the libraries


def test_every_section_measures_something(tmp_path):
    tables = report(tmp_path, "--precisions", "16-bit")
    steps, losses, by_graphs, joint, predicted = tables.values()
    wanted = [name for name in training.PEERS["16-bit"] if CPU.can_run(name)]
    assert [(row[1], row[3]) for row in steps] == [("16-bit", name) for name in wanted]
    assert [row[3] for row in by_graphs] == [training.OURS], "a CPU has none"
    assert all(float(row[4]) > 0 and float(row[5]) > 0 for row in steps)
    assert [row[0] for row in losses] == ["fp32", "bf16"]
    assert [row[-1] for row in losses] == ["0.0e+00"] * 2, "the CPU beside itself"
    assert [row[2] for row in joint] == ["1", "2"]
    assert [row[3] for row in predicted] == [*gpu.PREDICTING] * 2
    assert all(float(row[4]) > 0 for row in predicted)


def failing(options, device):
    yield ["| a | b | c | d | e | f |"]
    raise RuntimeError("out of memory\nin the kernel")


def dying(options, device):
    yield ["| a | b | c | d | e | f |"]
    os._exit(3)


def hanging(options, device):
    yield ["| a | b | c | d | e | f |"]
    time.sleep(600)


@pytest.mark.parametrize(
    ("rows", "share", "why"),
    [
        (failing, 0.1, "Failed: RuntimeError: out of memory"),
        (dying, 0.1, "Its process ended with exit code 3."),
        (hanging, 1 / 3600, "Stopped after its 1 s."),
    ],
)
def test_a_section_that_does_not_end_well_keeps_its_rows_and_the_next_ones(rows, share, why, tmp_path, monkeypatch):
    bad = replace(gpu.SECTIONS["losses"], rows=rows, share=share)
    good = replace(bad, title="Next", rows=lambda *given: iter([["| 1 | 2 | 3 | 4 | 5 | 6 |"]]), share=0.1)
    monkeypatch.setattr(gpu, "SECTIONS", {"losses": bad, "joint": good})
    tables = report(tmp_path, "--sections", "losses", "joint")
    assert list(tables.values()) == [[["a", "b", "c", "d", "e", "f"]], [["1", "2", "3", "4", "5", "6"]]]
    assert why in (tmp_path / "gpu.md").read_text()


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "there is no GPU; try it out with --accelerator cpu" in capsys.readouterr().err
