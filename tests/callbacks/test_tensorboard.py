import importlib.util

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lora_pl import LoRAClassifier, Run, SentenceDataModule
from lora_pl.callbacks import confusion_figure


@pytest.mark.parametrize("first", [True, False])
def test_tensorboard_has_everything_wherever_it_is_among_the_loggers(
    first, tiny_encoder, glue_folder, monkeypatch, capsys
):
    monkeypatch.setattr(confusion_figure, "find_spec", importlib.util.find_spec)
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    loggers = [TensorBoardLogger("board", name="", version=""), CSVLogger("csv")]
    Run("mine").fit(LoRAClassifier.for_data(data), data, max_epochs=1, logger=loggers if first else loggers[::-1])
    events = EventAccumulator("board")
    events.Reload()
    assert {"config/text_summary", "parameters/text_summary"} <= {*events.Tags()["tensors"]}
    assert events.Tags()["images"] == ["val/confusion"]
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert "tensorboard --logdir board" in capsys.readouterr().err
