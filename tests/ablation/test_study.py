import json

from lora_pl.ablation.study import SETTINGS, check_study, run_study
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.storage.schema import defaults


def test_a_study_that_knew_fewer_settings_is_resumed(tmp_path):
    (tmp_path / SETTINGS).write_text(json.dumps({"data.batch_size": 8}))
    data = {f"data.{name}": value for name, value in defaults(SentenceDataModule.__init__).items()}
    check_study(tmp_path, {**data, "data.batch_size": 8, "early_stopping_patience": None})


def test_nothing_is_launched_where_nothing_is_left(tmp_path):
    def launch(units, run):
        raise AssertionError("launched")

    assert run_study(tmp_path, [], {}, None, launch) == []
