import pytest
from lightning.pytorch.loggers import CSVLogger

from lora_pl.callbacks.throughput import Throughput
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.model.classifier import LoRAClassifier
from tests.model.test_classifier import trainer


@pytest.mark.parametrize(("batching", "interval", "logged"), [("packed", 2, 2), ("padded", 2, 2), ("packed", 0, 0)])
def test_logs_rates(batching, interval, logged, tiny_encoder, glue_folder, tmp_path):
    rows = []
    logger = CSVLogger(tmp_path)
    logger.log_metrics = lambda metrics, step: rows.append(metrics)
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batching=batching, batch_size=8)
    run = trainer(tmp_path, logger=logger, max_steps=4, log_every_n_steps=interval, callbacks=[Throughput()])
    run.fit(LoRAClassifier(encoder=tiny_encoder()), data)
    rows = [row for row in rows if "throughput/tokens_per_second" in row]
    assert len(rows) == logged
    for row in rows:
        assert row["throughput/tokens_per_second"] > row["throughput/sentences_per_second"] > 0
