"""`train_biases` and `train_norms`: what is trained, stored, restored and refused, on every architecture."""

import pytest
import torch
from lightning.pytorch import seed_everything

from lora_pl import LoRAClassifier, LoRAConfig, SentenceDataModule
from lora_pl.encoder.biases_and_norms import biases_and_norms
from lora_pl.errors import UserError
from lora_pl.formats.importing import checkpoint_of
from lora_pl.lora import VARIANTS, LoRAError, disable_lora, merged_lora, remove_lora
from tests.encoder.test_architectures import KINDS
from tests.formats.conftest import moved, saved
from tests.model.test_classifier import TEXTS, batch_of, changed_by, trainer
from tests.support import TINY_TERMS, assert_equal_to_rounding

SETTINGS = [
    {"train_biases": "lora"},
    {"train_biases": "all"},
    {"train_norms": True},
    {"train_biases": "all", "train_norms": True},
]
BOTH = SETTINGS[-1]
CASES = [("roberta", each) for each in SETTINGS[:-1]]
CASES += [(kind, BOTH if kind != "modernbert" else {"train_norms": True}) for kind in KINDS]
"""ModernBERT has no bias."""
each_case = pytest.mark.parametrize(("kind", "settings"), CASES)


@each_case
def test_trains_and_stores_exactly_these(kind, settings, tiny_encoder, glue_folder, tmp_path):
    model = LoRAClassifier(encoder=tiny_encoder(kind), learning_rate=1e-2, **settings)
    own = {f"encoder.{name}" for name in biases_and_norms(model.encoder, model.hparams)}
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(kind))
    changed = changed_by(trainer(tmp_path, max_steps=2, limit_val_batches=0), model, data)
    names = [name for name, _ in model.named_parameters()]
    assert own
    assert changed == own | {name for name in names if ".adapter." in name or name.startswith("head.")}


@pytest.mark.parametrize(("kind", "settings"), [case for case in CASES if case[0] in ("roberta", "bert", "modernbert")])
def test_a_checkpoint_restores_them_and_starts_others(kind, settings, tiny_encoder, tmp_path):
    model = moved(LoRAClassifier(encoder=tiny_encoder(kind), **settings))
    path = saved(model, tmp_path)
    expected = model.logits(TEXTS)
    again = LoRAClassifier.load_from_checkpoint(path)
    assert torch.equal(again.logits(TEXTS), expected)
    assert again.base.fingerprints == model.base.fingerprints  # of the base, not of what was trained in it
    started = LoRAClassifier(encoder=tiny_encoder(kind), **settings, start_from=path)
    assert torch.equal(started.eval().logits(TEXTS), expected)
    assert not torch.equal(LoRAClassifier(encoder=tiny_encoder(kind), **settings).eval().logits(TEXTS), expected)


@pytest.mark.parametrize("kind", ["roberta", "deberta-v2", "distilbert"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_computes_the_same(variant, kind, tiny_encoder):
    model = moved(LoRAClassifier(encoder=tiny_encoder(kind), lora=LoRAConfig(2, 4.0, variant=variant), **BOTH))
    with merged_lora(model.encoder):
        merged = model.logits(TEXTS)
    assert_equal_to_rounding(merged, model.logits(TEXTS), TINY_TERMS)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_full_fine_tuning_at_the_start(variant, precision, tiny_encoder):
    """Where LoRA adds nothing yet, product and bias in one operation or apart."""
    found = []
    for method in (
        {**BOTH, "lora": LoRAConfig(variant=variant)},
        {"method": "full"},
    ):
        seed_everything(3, verbose=False)
        model = LoRAClassifier(encoder=tiny_encoder(), dropout=0.0, **method)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            model(batch_of(model)).square().sum().backward()
        found.append(dict(model.named_parameters()))
    ours, full = found
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    trained = [name for name in full if ours[name].requires_grad and name.startswith("encoder.")]
    assert {name.rpartition(".")[2] for name in trained} == {"weight", "bias"}
    for name in trained:
        assert ours[name].grad.dtype == torch.float32
        assert_equal_to_rounding(ours[name].grad, full[name].grad, TINY_TERMS, dtype)


@pytest.mark.parametrize("settings", SETTINGS)
def test_they_are_fp32_over_a_half_precision_base(data, settings, tiny_encoder, tmp_path):
    model = LoRAClassifier(encoder=tiny_encoder(), base_dtype="bfloat16", learning_rate=1e-2, **settings)
    own = biases_and_norms(model.encoder, model.hparams)
    kept = {name: parameter.detach().clone() for name, parameter in own.items()}
    trainer(tmp_path, precision="bf16-mixed", limit_val_batches=0).fit(model, data)
    assert {parameter.dtype for parameter in own.values()} == {torch.float32}
    assert all(not torch.equal(parameter, kept[name]) for name, parameter in own.items())
    assert model.encoder.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    again = LoRAClassifier.load_from_checkpoint(saved(model, tmp_path), base_dtype="bfloat16")
    assert torch.equal(again.logits(TEXTS), model.eval().logits(TEXTS))


@pytest.mark.parametrize("decay_bias", [True, False])
def test_their_rate_is_the_encoders_and_their_decay_as_decay_bias_says(decay_bias, tiny_encoder):
    model = LoRAClassifier(
        encoder=tiny_encoder(), decay_bias=decay_bias, weight_decay=0.5, learning_rate=1e-3, head_learning_rate=1e-2,
        lora=LoRAConfig(lr_ratio=4.0), **BOTH,
    )  # fmt: skip
    groups = {id(parameter): group for group in model.parameter_groups() for parameter in group["params"]}
    assert len(groups) == sum(parameter.requires_grad for parameter in model.parameters())
    for parameter in biases_and_norms(model.encoder, model.hparams).values():
        group = groups[id(parameter)]
        assert (group["lr"], group["weight_decay"]) == (1e-3, 0.5 if decay_bias else 0.0)


def test_disabled_and_removed_lora_leaves_what_was_trained_in_place(tiny_encoder):
    model = moved(LoRAClassifier(encoder=tiny_encoder(), **BOTH))
    trained = {name: tensor.clone() for name, tensor in biases_and_norms(model.encoder, model.hparams).items()}
    with disable_lora(model):
        disabled = model.logits(TEXTS)
    remove_lora(model.encoder)
    assert torch.equal(model.logits(TEXTS), disabled)
    left = dict(model.encoder.named_parameters())
    assert all(torch.equal(left[name], tensor) for name, tensor in trained.items())
    bare = LoRAClassifier(encoder=tiny_encoder(), method="head").encoder
    weights = {name: tensor for name, tensor in bare.named_parameters() if name not in trained}
    assert all(torch.equal(left[name], tensor) for name, tensor in weights.items())


def test_by_default_nothing_of_the_encoder_is_trained(model):
    assert biases_and_norms(model.encoder, model.hparams) == {}
    assert (model.hparams["train_biases"], model.hparams["train_norms"]) == ("none", False)


@pytest.mark.parametrize(("key", "value"), [("train_biases", "all"), ("train_norms", True)])
def test_a_head_is_trained_alone_and_full_fine_tuning_trains_all(key, value, tiny_encoder):
    with pytest.raises(UserError, match=f"^model.{key}: "):
        LoRAClassifier(encoder=tiny_encoder(), method="head", **{key: value})
    model = LoRAClassifier(encoder=tiny_encoder(), method="full", **{key: value})
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert len(model.state_dict()) == len(dict(model.named_parameters()))


@pytest.mark.parametrize("settings", SETTINGS)
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_loaded(settings, tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder(), **settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = f"encoder.{next(iter(biases_and_norms(model.encoder, model.hparams)))}"
    state = {key: tensor + 1 for key, tensor in before.items()}
    for wrong in (
        {key: tensor for key, tensor in state.items() if key != name},
        {**state, name: state[name][:3]},
        {**state, name: state[name].long()},
        {**state, "encoder.embeddings.word_embeddings.weight": torch.zeros(64, 16)},
    ):
        with pytest.raises(LoRAError, match="^state: "):
            model.load_state_dict(wrong)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    torch.save({**checkpoint_of(model), "state_dict": {**state, name: state[name] * torch.nan}}, "x.ckpt")
    with pytest.raises(UserError) as damaged:
        LoRAClassifier.load_from_checkpoint("x.ckpt")
    assert damaged.value.key == "checkpoint.damaged"
