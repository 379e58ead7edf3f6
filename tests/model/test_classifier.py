import copy
import itertools
import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from lora_pl import LoRAClassifier, LoRAConfig, SentenceDataModule
from lora_pl.data.batches import make_batch
from lora_pl.data.tokens import tokenize
from lora_pl.errors import UserError
from lora_pl.lora import VARIANTS, LoRAError, lora_layers
from lora_pl.lora.int8 import Int8Weight, int8_is_fast
from lora_pl.model.plain import MERGED_FROM
from tests.encoder.test_architectures import WITH_HEAD
from tests.lora.test_eva import WITH_A_AND_B
from tests.support import TINY_TERMS, assert_equal_to_rounding, rounding

TEXTS = ["the film is good", "the plot is very very dull", "fine", ""]


def trainer(tmp_path, **changes) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    short = {"enable_model_summary": False, "num_sanity_val_steps": 0, "max_steps": 3}
    return Trainer(default_root_dir=tmp_path, **{**quiet, **short, **changes})


def batch_of(model: LoRAClassifier, texts=TEXTS, batching="packed"):
    tokens = tokenize(model.tokenizer, [texts], 38)
    return make_batch(tokens, range(len(texts)), batching, model.tokenizer.pad_token_id)


def changed_by(trainer: Trainer, model: LoRAClassifier, data: SentenceDataModule) -> set[str]:
    """The names of the parameters that training changes: those to be trained, and those in a checkpoint."""
    before = copy.deepcopy(dict(model.named_parameters()))
    trainer.fit(model, data)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.replace(".adapter.", ".") for name in changed} == set(model.state_dict())
    return changed


@pytest.mark.parametrize("kind", WITH_HEAD)
@pytest.mark.parametrize("head", ["linear", "architecture"])
def test_every_architecture_trains_adapters_and_head_alone(kind, head, tiny_encoder, glue_folder, tmp_path):
    model = LoRAClassifier(encoder=tiny_encoder(kind), head=head, learning_rate=1e-2)
    assert len(model.adapted) == 4
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(kind))
    changed = changed_by(trainer(tmp_path, limit_val_batches=0), model, data)
    assert all("lora_" in name or name.startswith("head.") for name in changed)


def test_starts_as_the_base(tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder()).eval()
    bare = LoRAClassifier(encoder=tiny_encoder(), method="head").eval()
    bare.head.load_state_dict(model.head.state_dict())
    assert torch.equal(model(batch_of(model)), bare(batch_of(bare)))


def test_padding_does_not_change_a_sentence(tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder()).eval()
    together = model(batch_of(model))
    alone = torch.cat([model(batch_of(model, [text])) for text in TEXTS])
    assert_equal_to_rounding(together, alone, TINY_TERMS)


def test_dropout_is_active_in_fit(model, data, tmp_path):
    seen = []

    def watch(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        seen.append((module.training, bool((output == 0).any())))

    model.encoder.embeddings.dropout.register_forward_hook(watch)
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(model, data)
    assert seen == [(True, True)]


def test_a_loaded_model_is_trained_in_train_mode_and_one_that_was_frozen_as_before(data, tiny_encoder, tmp_path):
    model = LoRAClassifier(encoder=tiny_encoder()).eval()
    before = model.state_dict().keys()
    model.freeze()
    model.unfreeze()
    trainer(tmp_path).fit(model.eval(), data)
    assert all(module.training for module in model.modules())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.replace(".adapter.", ".") for name in trained} == before


@pytest.mark.parametrize("spoil", ["merged", "own"])
def test_what_no_checkpoint_would_hold_is_not_trained(model, data, spoil, tmp_path):
    if spoil == "merged":
        next(iter(lora_layers(model).values())).merge()
    else:
        model.own = nn.Linear(2, 2)
    with pytest.raises(UserError, match=rf"^model: .*{spoil}"):
        trainer(tmp_path).fit(model, data)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_subclass_may_have_an_optimizer_of_its_own(data, kind, scheduled, tiny_encoder, tmp_path):
    class Own(LoRAClassifier):
        def configure_optimizers(self):
            optimizer = kind(self.head.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)] * scheduled

    model = Own(encoder=tiny_encoder())
    before = model.head.weight.clone()
    stopped = trainer(tmp_path, limit_val_batches=0)
    stopped.fit(model, data)
    stopped.save_checkpoint(tmp_path / "own.ckpt")
    trainer(tmp_path, max_steps=4, limit_val_batches=0).fit(model, data, ckpt_path=tmp_path / "own.ckpt")
    assert not torch.equal(model.head.weight, before)


@pytest.mark.parametrize(("method", "trained"), [("lora", 4 * 2 * 16 * 4 + 34), ("head", 34), ("full", None)])
def test_methods(method, trained, tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder(), method=method)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert count == (trained or sum(parameter.numel() for parameter in model.parameters()))
    assert bool(lora_layers(model)) == (method == "lora")


def groups(model, tmp_path, **changes):
    model.trainer = trainer(tmp_path, **changes)
    return model.configure_optimizers()["optimizer"].param_groups


def test_the_head_has_its_own_rate_and_biases_may_go_without_decay(tiny_encoder, tmp_path):
    model = LoRAClassifier(encoder=tiny_encoder(), learning_rate=1e-3, head_learning_rate=1e-2, weight_decay=0.1)
    assert [(g["name"], g["initial_lr"], g["weight_decay"]) for g in groups(model, tmp_path)] == [
        ("adapters", 1e-3, 0.1), ("head", 1e-2, 0.1)]  # fmt: skip
    model = LoRAClassifier(encoder=tiny_encoder(), weight_decay=0.1, decay_bias=False)
    found = {g["name"]: (g["weight_decay"], len(g["params"])) for g in groups(model, tmp_path)}
    assert found == {"adapters": (0.1, 8), "head": (0.1, 1), "head_bias": (0.0, 1)}


@pytest.mark.parametrize("decay_bias", [True, False])
@pytest.mark.parametrize("variant", WITH_A_AND_B)
def test_lora_plus_gives_b_its_own_rate(variant, decay_bias, tiny_encoder, tmp_path):
    def made(**lora):
        settings = {"learning_rate": 1e-3, "head_learning_rate": 1e-2, "decay_bias": decay_bias}
        model = LoRAClassifier(encoder=tiny_encoder(), lora={"variant": variant, **lora}, **settings)
        return model, groups(model, tmp_path, max_steps=9)

    _, before = made()
    assert not [group for group in before if "_B" in group["name"]]
    assert [group["name"] for group in made(lr_ratio=1)[1]] == [group["name"] for group in before]
    model, found = made(lr_ratio=16)
    by_name = {group["name"]: group for group in found}
    own = [layer.adapter.get_parameter(name) for layer in lora_layers(model).values()
           for name in layer.adapter.b_names()]  # fmt: skip
    assert list(map(id, by_name["adapters_B"]["params"])) == list(map(id, own))
    assert by_name.keys() - {"adapters_B"} == {group["name"] for group in before}
    rates = {name: group["initial_lr"] for name, group in by_name.items()}
    expected = {"adapters": 1e-3, "adapters_bias": 1e-3, "adapters_B": 16e-3, "head": 1e-2, "head_bias": 1e-2}
    assert rates == {name: expected[name] for name in rates}
    trained = [id(parameter) for group in found for parameter in group["params"]]
    assert len(trained) == len(set(trained))
    assert set(trained) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("method", ["head", "full"])
def test_without_adapters_there_is_no_b(method, tiny_encoder, tmp_path):
    model = LoRAClassifier(encoder=tiny_encoder(), method=method, lora={"lr_ratio": 16})
    assert {"adapters_B"}.isdisjoint(group["name"] for group in groups(model, tmp_path, max_steps=9))


@pytest.mark.parametrize(("schedule", "last"), [("constant", 1.0), ("linear", 1 / 9)])
def test_the_schedule_goes_by_optimizer_steps(schedule, last, tiny_encoder, glue_folder, tmp_path):
    """48 sentences, batches of 8, 2 epochs, gradients of one batch a step: 12 steps, a quarter of them warm-up."""
    model = LoRAClassifier(encoder=tiny_encoder(), learning_rate=1.0, schedule=schedule, warmup_ratio=0.25)
    rates = []

    def note(optimizer, *args):
        rates.append(optimizer.param_groups[0]["lr"])

    configure = model.configure_optimizers

    def watched():
        configured = configure()
        configured["optimizer"].register_step_pre_hook(note)
        return configured

    model.configure_optimizers = watched
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    trainer(tmp_path, max_steps=-1, max_epochs=2, limit_val_batches=0).fit(model, data)
    assert len(rates) == 12
    assert rates[:4] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert rates[-1] == pytest.approx(last)


def test_accumulated_batches_are_one_step_of_the_schedule(tiny_encoder, glue_folder, tmp_path):
    model = LoRAClassifier(encoder=tiny_encoder(), schedule="linear")
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    runner = trainer(tmp_path, max_steps=-1, max_epochs=2, accumulate_grad_batches=3, limit_val_batches=0)
    runner.fit(model, data)
    assert runner.global_step == 4
    assert runner.lr_scheduler_configs[0].scheduler.last_epoch == 4
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


@pytest.mark.parametrize(("name", "value"), [("schedule", "linear"), ("warmup_ratio", 0.1)])
def test_what_goes_by_the_share_of_all_steps_needs_an_end(name, value, tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder(), **{name: value})
    model.trainer = type("Endless", (), {"estimated_stepping_batches": math.inf, "gradient_clip_val": None})()
    with pytest.raises(UserError, match=f"^model.{name}: {value} needs an end"):
        model.configure_optimizers()


@pytest.mark.parametrize("batch_tokens", [8, 50, 4096])
def test_accuracy_is_exact_over_the_split(model, batch_tokens, tiny_encoder, glue_folder, tmp_path):
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), eval_batch_tokens=batch_tokens)
    (logged,) = trainer(tmp_path).validate(model, data, verbose=False)
    lines = (glue_folder / "dev.tsv").read_text().splitlines()[1:]
    texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
    right = sum((p["label"] == "positive") == (y == "1") for p, y in zip(model.predict(texts), labels, strict=True))
    assert logged["val/accuracy"] == pytest.approx(right / len(labels), abs=1e-7)
    logits = model.eval()(batch_of(model, list(texts)))
    loss = nn.functional.cross_entropy(logits, torch.tensor([int(y) for y in labels]))
    assert logged["val/loss"] == pytest.approx(loss.item(), abs=rounding(TINY_TERMS))


def test_predict_keeps_the_order_and_the_mode(tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder()).train()
    model.encoder.embeddings.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    few, many = model.predict(TEXTS, batch_tokens=12), model.predict(TEXTS * 20)
    assert {name: module.training for name, module in model.named_modules()} == modes
    for one, other in zip(few * 20, many, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=rounding(TINY_TERMS))
        assert list(one["probabilities"]) == ["negative", "positive"]
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert one["probabilities"][one["label"]] == one["score"] == max(one["probabilities"].values())
    assert model.predict([]) == []
    assert model.logits([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("task", "texts"),
    [
        ("sst2", "fine"),
        ("sst2", ["fine", ("a", "b")]),
        ("sst2", [("a", "b")]),
        ("rte", ["fine"]),
        ("sst2", [{"text": "fine"}]),  # as `pipeline` takes it
        ("sst2", ["fine", None]),
        ("sst2", 5),
    ],
)
def test_predict_refuses_what_is_no_list_of_its_texts(task, texts, tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder(), task=task)
    for asked in (model.predict, model.logits, model.tokenize):
        with pytest.raises(UserError, match="^predict.texts: "):
            asked(texts)


def test_a_trainer_predicts_from_a_loader_and_not_from_texts(data, tmp_path):
    model, own = LoRAClassifier.for_data(data), trainer(tmp_path)
    own.fit(model, data)
    (loader,) = data.val_dataloader()
    (logits,), (batch,) = own.predict(model, loader), loader
    assert torch.equal(logits, model.eval()(batch))
    for given in ({"datamodule": data}, {"dataloaders": DataLoader(TEXTS)}):
        with pytest.raises(UserError, match="^predict: "):
            own.predict(model, **given)


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_more_loaders_than_the_task_has_splits(data, verb, tmp_path):
    data.setup("fit")
    with pytest.raises(UserError, match="^data: "):
        getattr(trainer(tmp_path), verb)(LoRAClassifier.for_data(data), dataloaders=data.val_dataloader() * 2)


def test_pairs_regression_and_own_classes(tiny_encoder):
    pairs = [("the film", "is good"), ("the plot", "is dull")]
    assert {p["label"] for p in LoRAClassifier(encoder=tiny_encoder("bert"), task="rte").predict(pairs)} <= {
        "entailment", "not_entailment"}  # fmt: skip
    (score,) = LoRAClassifier(encoder=tiny_encoder(), task="stsb").predict(pairs[:1])
    assert list(score) == ["score"]
    own = LoRAClassifier(encoder=tiny_encoder(), task="custom", label_names=["a", "b", "c"])
    assert list(own.predict(["fine"])[0]["probabilities"]) == ["a", "b", "c"]
    for wrong in ({"task": "custom"}, {"label_names": ["one"]}):
        with pytest.raises(UserError, match="^label_names: "):
            LoRAClassifier(encoder=tiny_encoder(), **wrong)
    single = LoRAClassifier(encoder=tiny_encoder(), task="stsb", pairs=False)
    assert list(single.predict(["fine"])[0]) == ["score"]
    with pytest.raises(UserError, match="^predict.texts: "):
        single.predict(pairs)


@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_type_ids_reach_an_encoder_that_has_types(batching, tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder("bert"), task="rte").eval()
    tokens = tokenize(model.tokenizer, [["the film"], ["is good"]], 38)
    batch = make_batch(tokens, [0], batching, 1)
    assert batch.token_type_ids.sum() == 3
    encoded = model.tokenizer("the film", "is good", return_tensors="pt")
    expected = model.head(model.encoder(**encoded).last_hidden_state[:, 0])
    assert_equal_to_rounding(model(batch), expected, TINY_TERMS)


@pytest.mark.parametrize("kind", ["cola", "mrpc", "stsb", "mnli"])
def test_every_metric_and_split_is_logged(kind, tiny_encoder, tmp_path):
    from tests.data.test_glue_files import LAYOUTS

    lines = LAYOUTS[kind][0]
    body = lines if kind == "cola" else lines[1:]
    body = [*body, *(line.replace("3.800", "1.0") for line in body)]
    header = [] if kind == "cola" else lines[:1]
    for name in ("train.tsv", "dev.tsv", "dev_matched.tsv", "dev_mismatched.tsv"):
        (tmp_path / name).write_text("\n".join(header + body) + "\n")
    data = SentenceDataModule(task=kind, source=str(tmp_path), encoder=tiny_encoder())
    model = LoRAClassifier(encoder=tiny_encoder(), task=kind)
    runner = trainer(tmp_path, max_steps=1)
    runner.fit(model, data)
    expected = {
        "cola": {"matthews", "accuracy"}, "mrpc": {"accuracy", "f1"}, "stsb": {"pearson", "spearman"},
        "mnli": {"accuracy", "accuracy_mismatched", "loss_mismatched"},
    }[kind]  # fmt: skip
    logged = {name.removeprefix("val/") for name in runner.callback_metrics if name.startswith("val/")}
    assert logged == expected | {"loss"}
    assert model.monitor in runner.callback_metrics


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("head_learning_rate", -1.0),
        ("weight_decay", -0.1),
        ("warmup_ratio", 1.0),
        ("dropout", 1.0),
    ],
)
def test_rates_out_of_range_are_named(name, value, tiny_encoder):
    with pytest.raises(UserError, match=f"^model.{name}: "):
        LoRAClassifier(encoder=tiny_encoder(), **{name: value})


def test_roles_become_the_architectures_names(tiny_encoder):
    lora = LoRAConfig(target_modules=("query", "key"))
    model = LoRAClassifier(encoder=tiny_encoder("distilbert"), lora=lora)
    assert [name.rpartition(".")[2] for name in model.adapted[:2]] == ["q_lin", "k_lin"]
    with pytest.raises(LoRAError, match="^target_modules: "):
        LoRAClassifier(encoder=tiny_encoder("distilbert"), lora=LoRAConfig(target_modules=("q_linn",)))


@pytest.mark.parametrize(
    ("precision", "base_dtype", "expected"),
    [
        ("32-true", "auto", torch.float32),
        ("bf16-mixed", "auto", torch.bfloat16),
        ("bf16-mixed", "float32", torch.float32),
        ("32-true", "float16", torch.float16),
    ],
)
@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_the_base_is_kept_in_its_type_and_the_rest_in_fp32(
    precision, base_dtype, expected, batching, tiny_encoder, glue_folder, tmp_path
):
    model = LoRAClassifier(encoder=tiny_encoder(), base_dtype=base_dtype, learning_rate=1e-2)
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batching=batching)
    trainer(tmp_path, precision=precision, limit_val_batches=0).fit(model, data)
    for name, parameter in model.encoder.named_parameters():
        is_fp32 = parameter.requires_grad or "LayerNorm" in name
        assert parameter.dtype == (torch.float32 if is_fp32 else expected), name
    assert {p.dtype for p in model.head.parameters()} == {torch.float32}
    assert model.eval()(batch_of(model)).dtype == torch.float32
    before = copy.deepcopy(model.state_dict())
    assert len(model.predict(TEXTS * 64)) == MERGED_FROM
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_rms_norms_are_norms(tiny_encoder, glue_folder, tmp_path):
    lora = {"target_modules": ["q_proj", "up_proj"]}
    exact, half = (LoRAClassifier(encoder=tiny_encoder("eurobert"), lora=lora) for _ in range(2))
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder("eurobert"))
    trainer(tmp_path, precision="bf16-mixed").fit(half, data)
    frozen = {name: p.dtype for name, p in half.encoder.named_parameters() if not p.requires_grad}
    assert frozen == {name: torch.float32 if "norm" in name else torch.bfloat16 for name in frozen}
    exact.load_state_dict(half.state_dict())
    got, expected = half.logits(TEXTS), exact.logits(TEXTS)
    assert (got - expected).norm() / expected.norm() < 20**0.5 * 2**-7


@pytest.mark.skipif(not int8_is_fast(), reason="needs AVX512_VNNI")
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_int8_base_answers_as_the_fp32_one_and_is_never_merged(variant, tiny_encoder):
    exact, eight = (
        LoRAClassifier(encoder=tiny_encoder(), lora={"variant": variant}, base_dtype=dtype).eval()
        for dtype in ("float32", "int8")
    )
    for layer in lora_layers(exact).values():
        torch.nn.init.normal_(layer.adapter.lora_B)
    eight.load_state_dict(exact.state_dict())
    many = TEXTS * 80
    logits = eight.logits(many)
    assert 0 < (logits - exact.logits(many)).norm() / logits.norm() < 0.05
    with eight.merged_for_prediction(torch.int8):
        assert torch.equal(eight.logits(many), logits)
    assert [answer["score"] for answer in eight.predict(many)] == logits.softmax(-1).amax(-1).tolist()


def test_int8_says_what_it_needs(tiny_encoder, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_vnni": False})
    with pytest.raises(UserError, match="^model.base_dtype: .*AVX512_VNNI"):
        LoRAClassifier(encoder=tiny_encoder(), base_dtype="int8")


@pytest.mark.skipif(not int8_is_fast(), reason="needs AVX512_VNNI")
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_int8_run_has_its_linear_layers_in_int8(data, variant, tiny_encoder, tmp_path):
    lora = {"variant": variant}
    model = LoRAClassifier(encoder=tiny_encoder(), lora=lora, base_dtype="int8", learning_rate=1e-2)
    before = copy.deepcopy(model.state_dict())
    trainer(tmp_path, precision="32-true").fit(model, data)
    trainer(tmp_path).validate(model, data, verbose=False)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if "lora_B" in name)
    linear = [module.weight for module in model.encoder.modules() if isinstance(module, nn.Linear)]
    assert all(isinstance(weight, Int8Weight) for weight in linear)
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(
        parameter.numel() for parameter in LoRAClassifier(encoder=tiny_encoder(), lora=lora).parameters()
    )


def test_full_fine_tuning_keeps_fp32(data, tiny_encoder, tmp_path):
    model = LoRAClassifier(encoder=tiny_encoder(), method="full")
    trainer(tmp_path, precision="bf16-mixed").fit(model, data)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_twenty_steps_are_the_same_packed_and_padded(tiny_encoder, glue_folder, tmp_path):
    losses = {}
    for batching in ("packed", "padded"):
        torch.manual_seed(0)
        model = LoRAClassifier(encoder=tiny_encoder(), dropout=0.0, learning_rate=3e-2, head_learning_rate=1e-1)
        data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batching=batching, batch_size=8)
        seen = losses[batching] = []
        model.training_step = lambda *given, of=model.training_step, seen=seen: _noted(of(*given), seen)
        trainer(tmp_path, max_steps=20, max_epochs=-1, limit_val_batches=0).fit(model, data)
    assert len(losses["packed"]) == 20
    moved = 20 * 1e-1  # at most: a step of AdamW moves a weight by its learning rate
    assert losses["packed"] == pytest.approx(losses["padded"], abs=rounding(TINY_TERMS, scale=moved))
    assert max(losses["packed"]) - min(losses["packed"]) > 0.2  # the weights moved far


def _noted(loss, seen):
    seen.append(loss.item())
    return loss


def broken(tiny_encoder, **changes) -> LoRAClassifier:
    """A model whose loss is NaN at its second step."""
    model = LoRAClassifier(encoder=tiny_encoder(), learning_rate=1e-2, **changes)
    calls = itertools.count(1)
    model.head.register_forward_hook(lambda *given: given[-1] * float("nan") if next(calls) == 2 else None)
    return model


def test_a_loss_that_is_no_number_stops_the_run(tiny_encoder, glue_folder, tmp_path):
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    with pytest.raises(UserError, match=r"^model.nonfinite_loss: .*step 1 \(epoch 0, batch 1\).* checkpoint: none"):
        trainer(tmp_path).fit(broken(tiny_encoder), data)


def test_or_is_skipped(tiny_encoder, glue_folder, tmp_path, capsys):
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    model = broken(tiny_encoder, nonfinite_loss="skip")
    run = trainer(tmp_path, max_steps=-1, max_epochs=1)
    run.fit(model, data)
    assert "loss is nan at step 1 (epoch 0, batch 1); the batch is skipped" in capsys.readouterr().err
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert torch.isfinite(run.callback_metrics["train/accuracy"])


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_sentences_whose_logits_are_no_numbers_are_named(model, batching, stage, tiny_encoder, glue_folder, tmp_path):
    """By their numbers in the split, whatever the order and the batches in which they are evaluated."""
    head, *rows = (glue_folder / "dev.tsv").read_text().splitlines()
    for row in (2, 30, 31, 47):
        rows[row] = "ever " * (row % 5) + rows[row]
    (tmp_path / "dev.tsv").write_text("\n".join([head, *rows]) + "\n")
    data = SentenceDataModule(
        source=str(tmp_path), encoder=tiny_encoder(), batching=batching, eval_batch_tokens=24, cache_dir=str(tmp_path)
    )
    model.encoder.embeddings.word_embeddings.weight[model.tokenizer.convert_tokens_to_ids("ever")] = torch.nan
    with pytest.raises(UserError) as error:
        getattr(trainer(tmp_path), stage)(model, data)
    assert error.value.key == "model.nonfinite_loss"
    assert "3 sentences" in str(error.value)
    assert "no. 3, 32, 48 of validation" in str(error.value)


def test_a_model_for_data_takes_the_datas_labels_and_seed(tiny_encoder, tmp_path):
    (tmp_path / "mine.csv").write_text("text,other,label\nfine,a,good\nbad,b,poor\n")
    path = str(tmp_path / "mine.csv")
    columns = {"text_column": "text", "text_pair_column": "other", "max_length": 20}
    given = {"train_file": path, "validation_file": path, "encoder": tiny_encoder(), **columns}
    one, same, other = (LoRAClassifier.for_data(SentenceDataModule(**given, seed=seed)) for seed in (1, 1, 2))
    assert (one.hparams["task"], one.label_names, one.pairs, one.max_length) == ("custom", ["good", "poor"], True, 20)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_predictions_share_one_merge(model, dtype):
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.adapter.lora_B)
    layer = next(iter(lora_layers(model).values()))
    expected, base = model.predict(TEXTS), layer.weight.clone()
    merged = (base + layer.delta_weight()).to(dtype)
    with model.merged_for_prediction(dtype):
        assert torch.equal(layer.merged_weight, merged)  # rounded once
        found = [model.predict([text])[0] for text in TEXTS]
        assert torch.equal(layer.merged_weight, merged)
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=tolerance)
    assert torch.equal(layer.weight, base.to(dtype))
    assert not layer.merged
    model.train()(batch_of(model)).sum().backward()
