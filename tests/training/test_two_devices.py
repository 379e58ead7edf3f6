"""Two processes by the command."""

import json

from lora_pl.data import texts as shards
from lora_pl.storage.checkpoint import read_checkpoint
from tests.processes import command, run, run_ranks


def in_small_shards(*arguments: str) -> int:
    """`command`, in which the processes share 2,500 texts as they would 80,000."""
    shards.SHARD = 2
    return command(*arguments)


def test_the_command_line_on_two_devices(tiny_encoder, glue_folder, tmp_path):
    """fit starts its second process, predict's are started by another program; texts come once, in their order."""
    two = ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    arguments = ["fit", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--run_name", "two"]
    run(tmp_path, command, *arguments, "--data.batch_size", "4", "--trainer.max_epochs", "2", *two)
    checkpoint = tmp_path / "checkpoints" / "two" / "last.ckpt"
    assert read_checkpoint(checkpoint)["global_step"] == 12
    texts = [f"the film {number} is good" for number in range(2_501)]
    (tmp_path / "x.txt").write_text("\n".join(texts) + "\n")
    predict = ["predict", "--ckpt_path", str(checkpoint), "--input", "x.txt", "--output", "y.jsonl"]
    run_ranks(2, tmp_path, in_small_shards, *predict, *two)
    with (tmp_path / "y.jsonl").open() as rows:
        assert [json.loads(row)["text"] for row in rows] == texts
    assert not (tmp_path / "y.jsonl.parts").exists()
