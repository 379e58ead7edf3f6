import pytest

from lora_pl import LoRAClassifier, SentenceDataModule


@pytest.fixture
def data(tiny_encoder, glue_folder) -> SentenceDataModule:
    return SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder())


@pytest.fixture
def model(tiny_encoder) -> LoRAClassifier:
    return LoRAClassifier(encoder=tiny_encoder())
