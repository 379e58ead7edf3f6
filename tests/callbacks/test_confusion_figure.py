import importlib.util

import matplotlib.image
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lora_pl import LoRAClassifier, Run, SentenceDataModule
from lora_pl.callbacks import confusion_figure
from lora_pl.callbacks.confusion_image import confusion_image
from lora_pl.model.class_scores import ConfusionScores


def test_the_best_validation_is_drawn_once(tiny_encoder, glue_folder, monkeypatch):
    """At this rate no later validation is better than the first."""
    monkeypatch.setattr(confusion_figure, "find_spec", importlib.util.find_spec)
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    run = Run("mine")
    run.fit(LoRAClassifier.for_data(data, learning_rate=1e-12), data, max_epochs=3)
    events = EventAccumulator("logs/mine", size_guidance={"images": 0})
    events.Reload()
    (drawn,) = events.Images("val/confusion")
    assert drawn.step == events.Scalars("val/accuracy")[0].step
    shown = matplotlib.image.imread(run.folder / "confusion.png")
    assert shown.shape[:2] == (drawn.height, drawn.width)


@pytest.mark.parametrize(("most", "installed"), [(1, True), (50, False)])
def test_many_classes_or_no_matplotlib_no_picture(most, installed, tiny_encoder, glue_folder, monkeypatch):
    monkeypatch.setattr(confusion_figure, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(confusion_figure, "MOST_SHOWN", most)
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    run = Run("mine")
    run.fit(LoRAClassifier.for_data(data), data, max_steps=1, limit_val_batches=1, val_check_interval=1)
    assert run.best_checkpoint.exists()
    assert not list(run.folder.glob("*.png"))


@pytest.mark.parametrize("labels", [["no", "yes"], ["$x_1", "请求\x1b[2J", "a name " * 9]])
def test_a_picture_of_any_names(labels):
    counts = torch.diag(torch.arange(len(labels)) * 1000)
    image = confusion_image(ConfusionScores(counts), labels, "validation")
    assert image.shape[2] == 4
    assert 300 < min(image.shape[:2]) <= max(image.shape[:2]) < 800
