import json
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_pl.encoder import EMBEDDED
from lora_pl.encoder.fingerprint import vocabulary_fingerprint, weights_fingerprint
from lora_pl.encoder.loading import load_config, load_encoder, load_tokenizer, max_tokens
from lora_pl.encoder.source import GIVEN_BY, canonical_name, local_path
from lora_pl.errors import UserError


def test_the_embedded_encoder_loads_in_fp32_in_train_mode_without_a_pooler():
    encoder = load_encoder(EMBEDDED)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert encoder.training
    assert encoder.pooler is None
    assert encoder.num_parameters() == 5_282_048
    assert max_tokens(encoder.config) == 96


def test_golden_ids_of_the_embedded_tokenizer():
    ids = load_tokenizer(EMBEDDED)("This movie was absolutely trash!").input_ids
    assert ids[0] == 0
    assert ids[-1] == 2
    assert load_tokenizer(EMBEDDED).decode(ids, skip_special_tokens=True).strip() == "this movie was absolutely trash!"


@pytest.mark.shared
def test_golden_ids_of_roberta_base(shared):
    tokenizer = load_tokenizer(str(shared / "models" / "roberta-base"))
    expected = [0, 713, 1569, 21, 3668, 8875, 328, 2]
    assert tokenizer("This movie was absolutely trash!").input_ids == expected


def test_fingerprints_tell_weights_and_vocabularies_apart(tiny_encoder):
    encoder, again = load_encoder(tiny_encoder()), load_encoder(tiny_encoder())
    print_ = weights_fingerprint(encoder)
    assert weights_fingerprint(again) == print_
    with torch.no_grad():
        again.encoder.layer[1].output.dense.weight[0, 0] += 1e-6
    assert weights_fingerprint(again) != print_
    tokenizer = load_tokenizer(tiny_encoder())
    before = vocabulary_fingerprint(tokenizer)
    tokenizer.add_tokens(["new"])
    assert vocabulary_fingerprint(tokenizer) != before


def test_names(tmp_path, tiny_encoder):
    assert local_path("roberta-base") == canonical_name("roberta-base") == "roberta-base"
    assert local_path("owner/name") == "owner/name"
    assert local_path(EMBEDDED).endswith("mini")
    assert canonical_name(EMBEDDED) == EMBEDDED
    assert canonical_name("./x").startswith("/")
    assert local_path(tiny_encoder()) == tiny_encoder()


def refused(load, name) -> str:
    with pytest.raises(UserError) as error:
        load(str(name))
    assert error.value.key == "model.encoder"
    return str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "./nowhere",
        "package://no_such_package/x",
        "package://lora_pl/encoder/maxi",
        "package://lora_pl/data",
        "no-such/encoder",
    ],
)
def test_a_name_that_leads_nowhere(name):
    assert name.removeprefix("package://lora_pl/").partition("/")[0] in refused(load_config, name)


def test_what_a_name_that_leads_nowhere_is_told():
    assert "no-such/encoder is no folder here and could not be loaded" in refused(load_config, "no-such/encoder")
    assert "no-such could not be loaded" in refused(load_config, "no-such")
    assert refused(load_config, "/moved/since").endswith(f"if a checkpoint's encoder has moved, give it: {GIVEN_BY}")


def test_a_tokenizer_that_is_written_in_python(tmp_path):
    """BERTweet's, for example."""
    from transformers import CanineTokenizer

    CanineTokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "canine"}')
    assert "CanineTokenizer, a tokenizer written in Python" in refused(load_tokenizer, tmp_path)


def test_a_folder_without_weights_or_with_damaged_ones(tiny_encoder, tmp_path):
    folder = tmp_path / "damaged"
    copytree(tiny_encoder(), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused(load_encoder, folder)
    weights.unlink()
    refused(load_encoder, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    refused(load_config, folder)


def test_weights_that_do_not_cover_the_encoder(tiny_encoder, tmp_path):
    folder = tmp_path / "gaps"
    copytree(tiny_encoder(), folder)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "encoder.layer.1.output.dense.weight" in refused(load_encoder, folder)


def test_a_configuration_far_larger_than_the_weights_is_not_built(tiny_encoder, tmp_path):
    folder = copytree(tiny_encoder(), tmp_path / "wide")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"hidden_size": 65_536}))
    assert "parameters, but the weights are" in refused(load_encoder, folder)


def test_a_model_that_is_no_text_encoder(tmp_path):
    from transformers import ViTConfig

    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    refused(load_tokenizer, tmp_path)
    refused(load_encoder, tmp_path)
