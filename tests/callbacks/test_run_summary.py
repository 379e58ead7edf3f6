from types import SimpleNamespace

import pytest

from lora_pl.callbacks.run_summary import _lines
from lora_pl.data.tasks import get_task


@pytest.mark.parametrize("name", ["sst2", "mrpc"])
def test_the_last_line_asks_about_an_example_of_the_task(name):
    trainer = SimpleNamespace(global_step=3, callbacks=[], logger=None)
    module = SimpleNamespace(monitor="val/accuracy", task=get_task(name))
    *_, last = _lines(trainer, module, None, "elsewhere/last.ckpt", 1.0)
    assert get_task(name).example_command("").strip() in last
