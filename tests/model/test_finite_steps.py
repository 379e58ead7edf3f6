"""Losses and gradients that are inf or NaN: found together, named by the step at fault, in no checkpoint."""

import itertools

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint

from lora_pl import LoRAClassifier, SentenceDataModule
from lora_pl.errors import UserError

NAN = float("nan")


@pytest.fixture
def made(tiny_encoder, glue_folder):
    """Six batches an epoch."""
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    return LoRAClassifier.for_data(data), data


def spoilt(tensor_at: int):
    """A hook that makes its NaN at one call."""
    calls = itertools.count()
    return lambda *given: given[-1] * NAN if next(calls) == tensor_at else None


def trainer_of(tmp_path, *callbacks, interval: int = 100, **options) -> Trainer:
    return Trainer(
        default_root_dir=tmp_path, accelerator="cpu", precision="32-true", logger=False, log_every_n_steps=interval,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip


def stopped(made, tmp_path, *callbacks, resumes=None, **options) -> tuple[UserError, Trainer]:
    trainer = trainer_of(tmp_path, *callbacks, **options)
    with pytest.raises(UserError) as error:
        trainer.fit(*made, ckpt_path=resumes)
    return error.value, trainer


@pytest.mark.parametrize(("interval", "seen"), [(1, 2), (2, 2), (3, 3), (4, 4), (100, 6)])
def test_a_gradient_is_named_by_the_step_at_fault_at_the_next_log(interval, seen, made, tmp_path):
    """At the latest at the epoch's end; the losses that are NaN from then on are its consequence."""
    made[0].head.weight.register_hook(spoilt(1))
    error, trainer = stopped(made, tmp_path, interval=interval, max_epochs=1)
    assert error.key == "trainer.gradients"
    assert error.message.startswith("the gradient of head.weight has inf or NaN at step 1;")
    assert trainer.global_step == seen


@pytest.mark.parametrize(("accumulated", "at"), [(1, "step 3 (epoch 0, batch 3)"), (2, "step 1 (epoch 0, batch 3)")])
def test_a_loss_is_named_by_its_batch(accumulated, at, made, tmp_path):
    made[0].head.register_forward_hook(spoilt(3))
    error, _ = stopped(made, tmp_path, max_epochs=1, num_sanity_val_steps=0, accumulate_grad_batches=accumulated)
    assert error.key == "model.nonfinite_loss"
    assert error.message.startswith(f"the loss is nan at {at};")


def test_the_last_good_checkpoint_is_named(made, tmp_path):
    """A callback of Lightning's own, and a resumed run that has saved nothing yet."""
    saving = ModelCheckpoint(tmp_path, filename="kept", monitor="val/accuracy")
    made[0].head.register_forward_hook(lambda *given: given[-1] * NAN if spoils and made[0].training else None)
    spoils: list[bool] = []
    spoil = LambdaCallback(on_train_epoch_end=lambda trainer, model: spoils.append(True))
    error, _ = stopped(made, tmp_path, saving, spoil, max_epochs=2)
    assert f"last good checkpoint: {tmp_path / 'kept.ckpt'};" in error.message
    error, _ = stopped(made, tmp_path, max_epochs=2, enable_checkpointing=False, resumes=tmp_path / "kept.ckpt")
    assert f"last good checkpoint: {tmp_path / 'kept.ckpt'};" in error.message


def test_what_a_run_before_has_left_unread_is_forgotten(made, tmp_path):
    def interrupt(*given):
        raise ZeroDivisionError

    made[0].head.weight.register_hook(spoilt(0))
    trainer = trainer_of(tmp_path, LambdaCallback(on_train_batch_end=interrupt))
    with pytest.raises(ZeroDivisionError):
        trainer.fit(*made)
    assert trainer.validate(LoRAClassifier.for_data(made[1]), made[1], verbose=False)


@pytest.mark.parametrize("manual", [False, True])
def test_a_subclass_with_a_step_of_its_own(manual, made, tmp_path):
    """Which stops at its NaN, or skips the step: its weights stay whole."""

    class Own(LoRAClassifier):
        def training_step(self, batch, batch_idx):
            loss = self.task.loss(self(batch), batch.labels) * (NAN if batch_idx == 1 else 1)
            if manual:
                self.optimizers().zero_grad()
                self.manual_backward(loss)
                self.optimizers().step()
            return loss

    for policy in ("stop", "skip"):
        model = Own.for_data(made[1], nonfinite_loss=policy)
        model.automatic_optimization = not manual
        if policy == "stop":
            error, _ = stopped((model, made[1]), tmp_path, interval=1, max_epochs=1)
            assert error.message.startswith("the loss is nan at step 1 (epoch 0, batch 1);")
        else:
            trainer_of(tmp_path, interval=1, max_epochs=1).fit(model, made[1])
            assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_run_stops_before_it_saves(made, tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    made[0].head.weight.register_hook(spoilt(2))
    _, trainer = stopped(made, tmp_path, saving, max_epochs=1)
    assert trainer.global_step == 4
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=2.ckpt"]


def test_and_before_it_validates(made, tmp_path):
    made[0].head.weight.register_hook(spoilt(0))
    error, trainer = stopped(made, tmp_path, max_epochs=1, val_check_interval=2)
    assert trainer.global_step == 2
    assert "head.weight has inf or NaN at step 0" in error.message
