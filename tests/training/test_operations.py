"""The operations of a training step: on a GPU each is launched by itself, on a CPU each passes over its numbers."""

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from lora_pl import LoRAClassifier, Run, SentenceDataModule
from tests.support import tiny_config, tiny_tokenizer

MOST = 950
"""Operations per step of roberta-base with sentences in two groups; views, which compute nothing, are not counted."""
READS = "aten._local_scalar_dense.default"
EVERY = 4
"""Steps between two logs."""


class Operations(TorchDispatchMode):
    """Counts what is computed, by name, views left out."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if not is_view(operation):
            self.counts[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


@cache
def is_view(operation: torch._ops.OpOverload) -> bool:
    """Whether the result lies in an argument's memory, which it leaves as it is."""
    schema = operation._schema
    writes = any(argument.alias_info and argument.alias_info.is_write for argument in schema.arguments)
    return not writes and any(result.alias_info for result in schema.returns)


class Steps(Callback):
    """Notes the counts at the start of each step."""

    def __init__(self, operations: Operations):
        self.operations, self.noted = operations, []

    def on_train_batch_start(self, *args):
        self.noted.append(self.operations.counts.copy())


@pytest.fixture
def like_roberta_base(tmp_path: Path) -> str:
    """12 layers and 12 heads, which set the number of operations, and a tiny width, which does not."""
    from transformers import AutoModel

    size = {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 24}
    AutoModel.from_config(tiny_config("roberta", **size)).save_pretrained(tmp_path / "encoder")
    tiny_tokenizer("roberta").save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.fixture
def of_two_lengths(tmp_path: Path) -> str:
    """Sentences in the layout of SST-2, so that attention has two groups in any batch."""
    words = ["very"] * 3, ["very"] * 24
    rows = [f"{' '.join(words[number % 2])} good\t{number % 3 % 2}" for number in range(200)]
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
    return str(tmp_path)


@pytest.mark.parametrize(("clip", "more"), [(None, 0), (1.0, 10)])
def test_a_step_has_no_more_operations_than_before_and_reads_nothing(
    clip, more, like_roberta_base, of_two_lengths, monkeypatch
):
    data = SentenceDataModule(source=of_two_lengths, encoder=like_roberta_base, batch_size=32)
    model = LoRAClassifier.for_data(data, lora={"r": 4})
    options = {"precision": "bf16-mixed", "accelerator": "cpu", "limit_val_batches": 0, "log_every_n_steps": EVERY}
    options["gradient_clip_val"] = clip
    lists, to_list = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(tensor) or to_list(tensor))
    with Operations() as operations:
        steps = Steps(operations)
        Run("counted").fit(model, data, max_steps=EVERY + 2, callbacks=[steps], **options)
    found = steps.noted[EVERY + 1] - steps.noted[1]
    print(f"{sum(found.values()) / EVERY:,.0f} operations and {found[READS] / EVERY} reads per step")
    assert sum(found.values()) <= EVERY * (MOST + more), found.most_common()
    assert found[READS] <= 1, "the loss that is logged"
    assert len(lists) <= 1 + 1, "losses and gradients' norms since the last log; the run's end has one more"
