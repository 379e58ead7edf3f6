import pytest
import torch
from lightning.pytorch import Trainer

from lora_pl.ablation.joint import JointData, JointTrials
from lora_pl.ablation.pack_size import LIMIT, Cost, PackProbe, pack_size
from tests.ablation.test_joint import TRIALS, data_of, like


@pytest.mark.parametrize(
    ("alone", "two", "free", "expected"),
    [
        (1.0, 1.0, 10**12, 1),  # two at once take twice as long as one
        (1.0, 0.9, 10**12, 1),
        (1.0, 0.6, 10**12, LIMIT),
        (1.0, 0.6, 1_000, 6),  # 100 bytes each, 60% of the memory
        (1.0, 0.6, 10, 1),
    ],
)
def test_packs_where_it_pays_as_many_as_memory_holds(alone, two, free, expected):
    assert pack_size(Cost(alone, 100), Cost(two, 200), free) == expected


def test_what_a_pack_keeps_is_measured(tiny_encoder, glue_folder, tmp_path):
    """Two trials keep about twice what one does, and weights do not count."""
    costs = []
    for count in (1, 2):
        torch.manual_seed(0)
        probe = PackProbe()
        trainer = Trainer(
            default_root_dir=tmp_path, callbacks=[probe], max_steps=4, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, accelerator="cpu",
        )  # fmt: skip
        data = JointData(data_of(tiny_encoder, glue_folder, 0), list(range(count)))
        trainer.fit(JointTrials(like(tiny_encoder), TRIALS[:count]), data)
        costs.append(probe.cost)
        assert probe.free_bytes > 0
        assert probe.cost.seconds_per_token > 0
    assert 1.5 < costs[1].kept_bytes / costs[0].kept_bytes < 2.5
