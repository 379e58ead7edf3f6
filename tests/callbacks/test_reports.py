"""The callbacks that report a run also work on a Trainer of one's own."""

import lightning
import pytest

from lora_pl import LoRAClassifier, SentenceDataModule
from lora_pl.callbacks.confusion_figure import ConfusionFigure
from lora_pl.callbacks.epoch_lines import EpochLines
from lora_pl.callbacks.hparams_record import HparamsRecord
from lora_pl.callbacks.merged_export import MergedExport
from lora_pl.callbacks.parameter_report import ParameterReport
from lora_pl.callbacks.precision_report import PrecisionReport
from lora_pl.callbacks.run_summary import RunSummary
from lora_pl.callbacks.throughput import Throughput

REPORTS = (ConfusionFigure, EpochLines, HparamsRecord, MergedExport, ParameterReport, PrecisionReport,
           RunSummary, Throughput)  # fmt: skip


@pytest.fixture
def made(tiny_encoder, glue_folder):
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    return LoRAClassifier.for_data(data), data


def fit(made, tmp_path, *callbacks, **options):
    trainer = lightning.Trainer(
        default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", precision="32-true", callbacks=list(callbacks),
        log_every_n_steps=2, enable_model_summary=False, enable_progress_bar=False, **options,
    )  # fmt: skip
    trainer.fit(*made)
    return trainer


@pytest.mark.parametrize("report", REPORTS)
def test_alone_with_lightnings_logger_and_checkpoints(report, made, tmp_path):
    assert fit(made, tmp_path, report()).global_step == 6


def test_all_of_them_report(made, tmp_path, capsys):
    fit(made, tmp_path, *(report() for report in REPORTS))
    said = capsys.readouterr().err
    for part in ("trainable", "matrix products in fp32", "epoch 1/1", "merged export: ", "accuracy 0.", ".ckpt"):
        assert part in said, part
    assert "best" not in said  # Lightning's own checkpoint follows no metric
