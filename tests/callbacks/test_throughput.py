import pytest
from lightning.pytorch.loggers import CSVLogger

from lora_pl.callbacks.throughput import Throughput
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.model.classifier import LoRAClassifier
from tests.model.test_classifier import trainer


@pytest.mark.parametrize(
    ("batching", "interval", "accumulated", "logged"),
    [("packed", 2, 1, [1, 3]), ("padded", 2, 1, [1, 3]), ("packed", 0, 1, []), ("packed", 2, 3, [1, 3])],
)
def test_logs_rates_where_lightning_logs(batching, interval, accumulated, logged, tiny_encoder, glue_folder, tmp_path):
    rows = []
    logger = CSVLogger(tmp_path)
    logger.log_metrics = lambda metrics, step: rows.append((step, metrics))
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batching=batching, batch_size=8)
    options = {"log_every_n_steps": interval, "accumulate_grad_batches": accumulated, "limit_val_batches": 0}
    run = trainer(tmp_path, logger=logger, max_steps=4, max_epochs=-1, callbacks=[Throughput()], **options)
    run.fit(LoRAClassifier(encoder=tiny_encoder()), data)
    rates = {step: row for step, row in rows if "throughput/tokens_per_second" in row}
    assert list(rates) == logged == [step for step, row in rows if "train/loss" in row]
    for row in rates.values():
        assert row["throughput/tokens_per_second"] > row["throughput/sentences_per_second"] > 0
