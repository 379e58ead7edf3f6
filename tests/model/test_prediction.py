import subprocess

import pytest

from lora_pl.data.tasks import get_task
from lora_pl.model.prediction import example_command


@pytest.mark.parametrize("name", ["sst2", "rte", "stsb"])
def test_the_example_command_writes_a_line_that_predict_reads(name):
    task = get_task(name)
    written, _, command = example_command(task, "a/best.ckpt").partition(" | ")
    line = subprocess.run(["sh", "-c", written], capture_output=True, text=True, check=True).stdout
    assert line == f"{task.example}\n"
    assert len(line.split("\t")) == len(task.columns)
    assert command == "lora_pl predict --ckpt_path a/best.ckpt"
