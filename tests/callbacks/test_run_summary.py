from types import SimpleNamespace

import pytest

from lora_pl.callbacks.run_summary import _lines
from lora_pl.data.tasks import get_task


@pytest.mark.parametrize("name", ["sst2", "mrpc"])
def test_the_last_line_asks_about_an_example_of_the_task(name):
    module = SimpleNamespace(task=get_task(name))
    trainer = SimpleNamespace(callbacks=[], logger=None, lightning_module=module)
    *_, last = _lines(trainer, "elsewhere/last.ckpt")
    assert last.endswith(get_task(name).example_command("elsewhere/last.ckpt"))
