import json

from lora_pl.ablation.study import SETTINGS, check_study
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.storage.schema import defaults


def test_a_study_that_knew_fewer_settings_is_resumed(tmp_path):
    (tmp_path / SETTINGS).write_text(json.dumps({"data.batch_size": 8}))
    data = {f"data.{name}": value for name, value in defaults(SentenceDataModule.__init__).items()}
    check_study(tmp_path, {**data, "data.batch_size": 8, "early_stopping_patience": None})
