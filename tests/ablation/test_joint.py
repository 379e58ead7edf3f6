"""A joint trial is the trial alone."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lora_pl import LoRAClassifier, SentenceDataModule
from lora_pl.ablation.grid import Trial, jointly
from lora_pl.ablation.joint import JointTrials, _joined
from lora_pl.ablation.joint_data import JointData, require_packed
from lora_pl.data.batches import Batch
from lora_pl.encoder.architectures import ARCHITECTURES
from lora_pl.errors import UserError
from lora_pl.lora import VARIANTS, LoRAError
from lora_pl.model.base import Base
from lora_pl.storage.checkpoint import BASE_KEY
from tests.model.test_classifier import trainer
from tests.support import TINY_TERMS, rounding


def trial_of(seed: int, rate: float, r: int, alpha: int, targets: list[str], **lora) -> Trial:
    own = {"r": r, "lora_alpha": alpha, "target_modules": targets, **lora}
    return Trial("LoRA", seed, {}, {"model.learning_rate": rate, **{f"model.lora.{key}": own[key] for key in own}})


GIVEN = [(0, 3e-2, 1, 4, ["query", "value"]), (1, 1e-2, 8, 16, ["query", "value"]), (2, 1e-2, 2, 4, ["value", "dense"])]
TRIALS = [trial_of(*given) for given in GIVEN]
OTHERS = [name for name in VARIANTS if name != "lora"]
SETTINGS = {"dropout": 0.0, "schedule": "linear", "warmup_ratio": 0.1, "head_learning_rate": 1e-1}


def run(model, data, tmp_path, **changes) -> Trainer:
    made = trainer(tmp_path, **{"max_epochs": 17, "max_steps": 50, "gradient_clip_val": 0.5, **changes})
    made.fit(model, data)
    return made


def like(tiny_encoder, **changes) -> LoRAClassifier:
    return LoRAClassifier(encoder=tiny_encoder(), **{**SETTINGS, **changes})


def data_of(tiny_encoder, glue_folder, seed: int) -> SentenceDataModule:
    return SentenceDataModule(
        source=str(glue_folder), encoder=tiny_encoder(), batch_size=16, seed=seed, train_sentences=40
    )


def alone(trial: Trial, variant, tiny_encoder, glue_folder, tmp_path, **changes) -> tuple[LoRAClassifier, Trainer]:
    seed_everything(trial.seed, workers=True, verbose=False)
    own = trial.model({"lora": {"variant": variant}})
    model = like(tiny_encoder, **{key: own[key] for key in ("lora", "learning_rate")})
    return model, run(model, data_of(tiny_encoder, glue_folder, trial.seed), tmp_path, **changes)


@pytest.mark.parametrize(("kind", "head"), [("roberta", "linear"), ("bert", "architecture")])
def test_trials_start_as_they_start_alone_on_one_base(kind, head, tiny_encoder, monkeypatch):
    """Bit for bit, and the encoder is loaded once."""
    expected = [at_the_start(trial, tiny_encoder(kind), head) for trial in TRIALS]
    model = LoRAClassifier(encoder=tiny_encoder(kind), head=head)
    monkeypatch.setattr(Base, "load", lambda *given, **named: pytest.fail("the encoder was loaded again"))
    joint = JointTrials(model, TRIALS)
    for index, alone in enumerate(expected):
        found = joint.trial_state(index)
        assert found.keys() == alone.state_dict().keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in alone.state_dict().items())
        assert joint.settings[index] == dict(alone.hparams)
        assert joint.trial_checkpoint(index, {})[BASE_KEY] == alone.base.fingerprints
    with pytest.raises(LoRAError, match="3.head.weight"):
        joint.load_state_dict({**joint.state_dict(), "3.head.weight": torch.zeros(2, 32)})
    with pytest.raises(UserError, match=r"^checkpoint\.base: "):
        joint.on_load_checkpoint({BASE_KEY: {**model.base.fingerprints, "weights": "0123"}})


def at_the_start(trial: Trial, encoder: str, head: str) -> LoRAClassifier:
    seed_everything(trial.seed, workers=True, verbose=False)
    return LoRAClassifier(**trial.model({"encoder": encoder, "head": head}))


@pytest.mark.parametrize(
    ("variant", "clip", "steps"),
    [("lora", "norm", 50), ("lora", "value", 20), *((name, "norm", 20) for name in OTHERS)],
)
def test_joint_steps_are_steps_alone(variant, clip, steps, tiny_encoder, glue_folder, tmp_path):
    changes = {"gradient_clip_algorithm": clip, "gradient_clip_val": 0.5 if clip == "norm" else 0.02}
    changes |= {"max_steps": steps, "check_val_every_n_epoch": steps // 3}  # once, after the last whole epoch
    joint = JointTrials(like(tiny_encoder, lora={"variant": variant}), TRIALS)
    starts = [{key: tensor.clone() for key, tensor in joint.trial_state(index).items()} for index in range(3)]
    together = run(joint, JointData(data_of(tiny_encoder, glue_folder, 0), [0, 1, 2]), tmp_path, **changes)
    assert together.global_step == steps
    for index, trial in enumerate(TRIALS):
        model, single = alone(trial, variant, tiny_encoder, glue_folder, tmp_path, **changes)
        assert single.global_step == steps
        expected, found = model.state_dict(), joint.trial_state(index)
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            # a step of AdamW moves a weight by its learning rate at most
            close = rounding(2 * TINY_TERMS, scale=steps * 1e-1)
            torch.testing.assert_close(found[key], tensor, atol=close, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
        assert max((found[key] - tensor).abs().max() for key, tensor in starts[index].items()) > 1e-2
        metrics = joint.epoch_metrics(index, "val")
        assert metrics["val/accuracy"] == pytest.approx(single.callback_metrics["val/accuracy"].item())
        assert metrics["val/loss"] == pytest.approx(single.callback_metrics["val/loss"].item(), abs=1e-4)


def test_a_trial_has_its_own_training_loss(tiny_encoder, glue_folder, tmp_path):
    """Weights that are given, those of its own labels, and smoothed labels: alone each has the same first losses."""
    losses = [{"class_weights": [1.0, 9.0]}, {"class_weights": "balanced"}, {"label_smoothing": 0.3}]
    trials = [
        replace(trial, options={**trial.options, **{f"model.{key}": value for key, value in loss.items()}})
        for trial, loss in zip(TRIALS, losses, strict=True)
    ]
    assert len({jointly(trial) for trial in trials}) == 1
    joint = JointTrials(like(tiny_encoder), trials)
    run(joint, JointData(data_of(tiny_encoder, glue_folder, 0), [0, 1, 2]), tmp_path, max_steps=2)
    for index, trial in enumerate(trials):
        seed_everything(trial.seed, workers=True, verbose=False)
        model = like(tiny_encoder, **{key: trial.model({})[key] for key in ("lora", "learning_rate", *losses[index])})
        run(model, data_of(tiny_encoder, glue_folder, trial.seed), tmp_path, max_steps=2)
        expected = float(model.metrics.compute("train")["train/loss"])
        assert joint.epoch_metrics(index, "train")["train/loss"] == pytest.approx(expected, rel=1e-4)


def test_trials_have_the_groups_that_they_have_alone(tiny_encoder):
    """LoRA+ too: names, rates and sizes, whatever the placement and the scale."""
    lora = {"lr_ratio": 8.0, "scaling": "rslora", "layers": 1, "exclude": ["key"], "variant": OTHERS[0]}
    trials = [trial_of(*given[:4], ["attention"], scaling="rslora") for given in GIVEN]

    def groups(model) -> list[tuple]:
        return [(g["name"], g["lr"], [p.shape for p in g["params"]]) for g in model.parameter_groups()]

    joint = JointTrials(like(tiny_encoder, lora=lora), trials)
    for number, trial in enumerate(trials):
        settings = trial.model({**joint.hparams})
        alone = LoRAClassifier(**settings)
        expected = [(f"{number}/{name}", *rest) for name, *rest in groups(alone)]
        assert len(expected) == 3
        assert [group for group in groups(joint) if group[0].startswith(f"{number}/")] == expected
        r, alpha = GIVEN[number][2:4]
        assert joint.bank.configs[str(number)].scale == alpha / r**0.5


def test_dropout_masks_are_each_trials_own(tiny_encoder, glue_folder):
    """The same trial twice on the same batch: other features under dropout, the same without."""
    twins = [TRIALS[1], replace(TRIALS[1], arm="twin")]
    for p, alike in ((0.5, False), (0.0, True)):
        joint = JointTrials(like(tiny_encoder, dropout=p), twins).train()
        data = data_of(tiny_encoder, glue_folder, 1)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        joint.training_step([batch, batch], 0)
        assert torch.allclose(*joint.step_losses, atol=rounding(TINY_TERMS)) == alike


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_loss_that_is_no_number_breaks_the_pack(policy, tiny_encoder, glue_folder, tmp_path):
    """Whether the trial at fault would stop or skip it shows when it runs alone."""
    joint = JointTrials(like(tiny_encoder, nonfinite_loss=policy), TRIALS[:2])
    joint.heads[1].register_forward_hook(lambda *given: given[-1] * float("nan") if joint.global_step == 2 else None)
    data = JointData(data_of(tiny_encoder, glue_folder, 0), [0, 1])
    with pytest.raises(UserError, match=r"^model\.nonfinite_loss: the loss is nan at step 2 "):
        run(joint, data, tmp_path, max_steps=4)


def test_so_do_logits_of_a_validation(tiny_encoder, glue_folder, tmp_path):
    joint = JointTrials(like(tiny_encoder), TRIALS[:2])
    joint.heads[1].register_forward_hook(lambda head, *given: None if head.training else given[-1] * float("nan"))
    with pytest.raises(UserError, match="val: 48 sentences have logits that are inf or NaN"):
        run(joint, JointData(data_of(tiny_encoder, glue_folder, 0), [0, 1]), tmp_path, max_epochs=1)


@pytest.mark.parametrize(("kind", "batching"), [("deberta-v2", "packed"), ("mpnet", "packed"), ("roberta", "padded")])
def test_padded_batches_are_refused(kind, batching, tiny_encoder, glue_folder):
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(kind), batching=batching)
    with pytest.raises(UserError, match="^pack: "):
        require_packed(data)


def test_a_joint_row_knows_where_its_texts_say_pad():
    ids = torch.tensor([[5, 1, 6, 7, 8]])
    batch = Batch(ids, torch.zeros_like(ids), torch.zeros(2), (2, 3), pads=(1,))
    joined = _joined([batch.filled(1), batch])
    assert joined.input_ids.tolist() == [[5, 1, 6, 7, 8] * 2]
    assert joined.pads == (1, 6)


def test_what_takes_packed_rows_shares_batches():
    """So that packed batches are all that joint trials need."""
    assert all(row.shares_batches for row in ARCHITECTURES.values() if row.packed)
