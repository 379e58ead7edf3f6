"""EVA on every architecture: packed, padded and in any precision it sees the tokens alone."""

import itertools
from functools import partial

import pytest
import torch

from lora_pl import LoRAClassifier, LoRAConfig, SentenceDataModule
from lora_pl.data.batches import make_batch
from lora_pl.encoder.architectures import ARCHITECTURES
from lora_pl.errors import UserError
from lora_pl.formats.importing import checkpoint_of
from lora_pl.lora import eva_matrices, lora_layers
from lora_pl.lora.adapter import GAUSSIAN_STD
from lora_pl.model.eva import input_moments
from lora_pl.storage.checkpoint import read_checkpoint
from tests.encoder.test_architectures import KINDS, PACKED
from tests.lora.test_eva import WITH_A_AND_B
from tests.model.test_classifier import TEXTS, batch_of, trainer
from tests.support import TINY_TERMS, assert_equal_to_rounding

RANKED = {"r": 5, "eva_rho": 2.0, "target_modules": "all-linear"}
ALL = {"r": 2, "init": "eva", "target_modules": "all-linear"}


@pytest.fixture
def made(tiny_encoder, glue_folder):
    """Data and a model of the same seed."""

    def make(kind: str = "roberta", seed: int = 3, lora=None, **settings):
        data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(kind), batch_size=8, seed=seed)
        lora = LoRAConfig(**{"r": 2, "init": "eva", **(lora or {})})
        return LoRAClassifier.for_data(data, lora=lora, **settings), data

    return make


def a_of(model: LoRAClassifier) -> dict[str, torch.Tensor]:
    return {name: layer.adapter.lora_A.detach().clone() for name, layer in lora_layers(model.encoder).items()}


def started(model, data, tmp_path, **options) -> LoRAClassifier:
    """After the set-up of a run, before its first step."""
    trainer(tmp_path, max_steps=0, **options).fit(model, data)
    return model


def inputs_one_by_one(model, data) -> dict[str, torch.Tensor]:
    """(tokens, in) by adapted layer, sentence by sentence, without padding, of the batches that EVA looks at."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in a_of(model)}
    seen = itertools.islice(data.train_dataloader(), model.hparams["lora"]["eva_batches"])
    for batch in [batch.padded(1) for batch in seen]:
        for ids, types, length in zip(batch.input_ids, batch.token_type_ids, batch.lengths, strict=True):

            def keep(layer, args, name, length=length) -> None:
                if args[0].shape[:-1] == (1, length):  # not relative positions
                    rows[name].append(args[0][0].detach())

            layers = lora_layers(model.encoder).items()
            hooks = [layer.register_forward_pre_hook(partial(keep, name=name)) for name, layer in layers]
            model.base.reader.of_padded(ids[None, :length], types[None, :length], torch.ones(1, length).long())
            for hook in hooks:
                hook.remove()
    return {name: torch.cat(parts) for name, parts in rows.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_starts_as_the_base_with_what_explains_its_inputs_best(kind, made, tmp_path):
    model, data = made(kind, lora={**ALL, "eva_batches": 2})
    bare, _ = made(kind, method="head")
    started(model, data, tmp_path)
    batch = batch_of(model, batching=model.base.batching)
    assert torch.equal(model.eval()(batch), bare.eval()(batch))
    a, inputs = a_of(model), inputs_one_by_one(model, data)
    assert len(a) == len(model.adapted) >= 12
    for name, x in inputs.items():
        expected = torch.linalg.svdvals(x)[:2]
        terms = TINY_TERMS * len(x)
        unit = a[name] / (GAUSSIAN_STD * x.shape[1] ** 0.5)
        assert_equal_to_rounding((x @ unit.T).norm(dim=0) / expected[0], expected / expected[0], terms)
        assert_equal_to_rounding(unit @ unit.T, torch.eye(2), 64)


@pytest.mark.parametrize("kind", PACKED)
def test_packed_and_padded_batches_give_the_same_bits(kind, made):
    model, data = made(kind, lora=ALL)
    data.setup("fit")
    found = []
    for batching in ("packed", "padded"):
        data.batching = batching
        batches = list(data.train_dataloader())
        assert all((batch.attention_mask is None) == (batching == "packed") for batch in batches)
        found.append(eva_matrices(model.base.resolve(LoRAConfig(**ALL)), input_moments(model.base, batches, 8)))
    packed, padded = found
    assert len(packed) == len(model.adapted)
    assert all(torch.equal(a, padded[name]) for name, a in packed.items())


def test_a_packed_batch_is_padded_as_a_padded_one(made):
    base = made("bert")[0].base
    tokens = base.tokenize((TEXTS, TEXTS[::-1]), 38)
    packed, padded = (make_batch(tokens, range(4), batching, 1) for batching in ("packed", "padded"))
    for name, value in vars(padded).items():
        own = getattr(packed.padded(1), name)
        assert torch.equal(own, value) if isinstance(value, torch.Tensor) else own == value
    assert padded.padded(1) is padded
    assert packed.token_type_ids.any()


@pytest.mark.parametrize("variant", WITH_A_AND_B)
def test_seeds_and_training_sentences_decide_it(variant, made, tmp_path):
    lora = {"variant": variant, "eva_batches": 1}
    one, same, other = (a_of(started(*made(seed=seed, lora=lora), tmp_path)) for seed in (3, 3, 4))
    more = a_of(started(*made(lora={**lora, "eva_batches": 2}), tmp_path))
    for name, a in one.items():
        assert torch.equal(a, same[name])
        assert not torch.equal(a, other[name])
        assert not torch.equal(a, more[name])


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_no_random_number_of_the_run_is_drawn(rho, made, tmp_path):
    """Head, order and dropout are those of a Gaussian start."""
    states = []
    for init in ("gaussian", "eva"):
        model, data = made(lora={"init": init, "eva_rho": rho, "lora_dropout": 0.1})
        started(model, data, tmp_path)
        states.append((torch.get_rng_state(), model.head.weight.detach().clone()))
        assert all(module.training for module in model.modules())
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))


def test_bf16_sees_the_inputs_of_the_cast_base(made, tmp_path):
    model, data = made()
    started(model, data, tmp_path, precision="bf16-mixed")
    moments = input_moments(model.base, data.train_dataloader(), 8)
    expected = eva_matrices(model.base.resolve(LoRAConfig(r=2, init="eva")), moments)
    assert all(torch.equal(a, expected[name]) for name, a in a_of(model).items())
    fp32 = a_of(started(*made(), tmp_path))
    assert not all(torch.equal(a, fp32[name]) for name, a in a_of(model).items())


@pytest.mark.parametrize("variant", WITH_A_AND_B)
@pytest.mark.parametrize("kind", [kind for kind in ("roberta", "modernbert") if kind in ARCHITECTURES])
def test_distributed_ranks_are_in_the_checkpoint_alone(kind, variant, made, tmp_path):
    lora = {**RANKED, "variant": variant}
    model, data = made(kind, lora=lora, learning_rate=0.1)
    trainer(tmp_path).fit(model, data)
    own = model.hparams["lora"]
    ranks = {name: layer.adapter.r for name, layer in lora_layers(model.encoder).items()}
    assert sum(ranks.values()) == 5 * len(ranks)
    assert own["rank_pattern"] == ranks != dict.fromkeys(ranks, 5)
    assert own["alpha_pattern"] == {name: pytest.approx(3.2 * r) for name, r in ranks.items()}
    assert own["target_modules"] == ["all-linear"]
    path = tmp_path / "x.ckpt"
    torch.save(checkpoint_of(model), path)
    loaded = LoRAClassifier.load_from_checkpoint(path)
    expected = model.eval().logits(TEXTS)
    assert torch.equal(loaded.logits(TEXTS), expected)
    # a model whose ranks are left to the data takes the checkpoint's
    open_lora = LoRAConfig(init="eva", **lora)
    assert torch.equal(LoRAClassifier.load_from_checkpoint(path, lora=open_lora).logits(TEXTS), expected)
    started_from, _ = made(kind, lora=lora, start_from=path)
    assert torch.equal(started_from.eval().logits(TEXTS), expected)
    assert started_from.hparams["lora"] == own


def test_only_a_new_model_looks_at_data(made, tmp_path, monkeypatch):
    model, data = made(lora=RANKED, learning_rate=0.1)
    keeps = trainer(tmp_path, enable_checkpointing=True)
    keeps.fit(model, data)
    path = keeps.checkpoint_callback.best_model_path
    a = a_of(model)
    monkeypatch.setattr("lora_pl.model.classifier.input_moments", lambda *given: pytest.fail("looked at data"))
    trainer(tmp_path, max_steps=0).fit(model, data)
    assert all(torch.equal(tensor, a[name]) for name, tensor in a_of(model).items())
    trainer(tmp_path, max_steps=0).fit(LoRAClassifier.load_from_checkpoint(path), data)
    trainer(tmp_path, max_steps=0).fit(made(lora=RANKED, start_from=path)[0], data)
    fresh, _ = made(lora=RANKED)
    for verb in ("validate", "test"):
        getattr(trainer(tmp_path), verb)(fresh, data, verbose=False)
    trainer(tmp_path).validate(fresh, data, ckpt_path=path, verbose=False)
    assert read_checkpoint(path)["hyper_parameters"]["lora"]["rank_pattern"]
    for method in ("head", "full"):
        trainer(tmp_path, max_steps=0).fit(made(method=method)[0], data)


def test_a_resumed_run_takes_the_ranks_where_it_has_looked_at_data(made, tmp_path):
    """Lightning's own: it says only after the set-up that `fit` has a `ckpt_path`."""
    model, data = made(lora=RANKED, learning_rate=0.1)
    keeps = trainer(tmp_path, enable_checkpointing=True)
    keeps.fit(model, data)
    path = keeps.checkpoint_callback.best_model_path
    again, other = made(seed=9, lora=RANKED, learning_rate=0.1)
    trainer(tmp_path, max_steps=3).fit(again, other, ckpt_path=path)
    assert torch.equal(again.eval().logits(TEXTS), model.eval().logits(TEXTS))
    assert again.hparams["lora"] == model.hparams["lora"]


def refused(tmp_path, model, data) -> str:
    with pytest.raises(UserError) as error:
        started(model, data, tmp_path)
    return error.value.key


def test_too_few_tokens(made, tmp_path):
    """Three sentences of up to eight tokens, of few words."""
    model, data = made(lora={"r": 16, "eva_batches": 1})
    data.hparams["batch_size"] = 1
    assert refused(tmp_path, model, data) == "model.lora.eva_batches"


def test_a_loader_alone_cannot_be_looked_at(made, tmp_path):
    model, data = made()
    data.setup("fit")
    assert refused(tmp_path, model, data.train_dataloader()) == "model.lora.init"


def test_spawned_processes_could_not_hand_back_ranks(made, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_pl.model.classifier._MultiProcessingLauncher", type(None))
    started(*made(), tmp_path)
    assert refused(tmp_path, *made(lora=RANKED)) == "model.lora.eva_rho"
