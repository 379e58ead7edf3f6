import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from lora_pl.callbacks.throughput import Throughput
from lora_pl.data.batches import Batch
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.model.classifier import LoRAClassifier


def test_products_count_what_is_computed(tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder())
    batch = Batch(torch.zeros(1, 10), torch.zeros(1, 10), torch.zeros(2), (4, 6))
    attention, feed_forward = 4 * 16 * 16, 2 * 16 * 32
    first_layer = 10 * (attention + feed_forward)
    last_layer = 10 * 3 * 16 * 16 + 2 * (16 * 16 + feed_forward)  # after attention two tokens are left
    assert step_products(model, batch) == 2 * (first_layer + last_layer)
    assert step_products(LoRAClassifier(encoder=tiny_encoder(), method="head"), batch) == first_layer + last_layer


@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_logs_rates_and_the_share_of_the_peak(batching, tiny_encoder, glue_folder, tmp_path):
    rows = []
    logger = CSVLogger(tmp_path)
    logger.log_metrics = lambda metrics, step: rows.append(metrics)
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batching=batching, batch_size=8)
    Trainer(
        default_root_dir=tmp_path, logger=logger, max_steps=4, log_every_n_steps=2, callbacks=[Throughput()],
        accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(LoRAClassifier(encoder=tiny_encoder()), data)  # fmt: skip
    rows = [row for row in rows if "throughput/tokens_per_second" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["throughput/tokens_per_second"] > row["throughput/sentences_per_second"] > 0
        assert ("throughput/share_of_peak" in row) == (batching == "packed")
        assert 0 < row.get("throughput/share_of_peak", 0.5) < 1
