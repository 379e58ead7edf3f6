"""A run by the Python API is the command's run, bit for bit."""

import math
import shutil
from pathlib import Path

import lightning
import numpy
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import HalfPrecision

from lora_pl import LoRAClassifier, Run, SentenceDataModule
from lora_pl.cli.main import main
from lora_pl.errors import UserError
from lora_pl.storage.checkpoint import read_checkpoint
from lora_pl.training.resume.same_run import check_same_run

SETTINGS = {"learning_rate": 3e-3, "schedule": "linear", "warmup_ratio": 0.06}


@pytest.fixture
def made(tiny_encoder, glue_folder):
    """Data and a model, as a notebook makes them."""

    def make(**changes) -> tuple[LoRAClassifier, SentenceDataModule]:
        data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8, seed=3)
        return LoRAClassifier.for_data(data, **{**SETTINGS, **changes}), data

    return make


@pytest.fixture
def command(tiny_encoder, glue_folder):
    """The same as flags of `fit`."""
    flags = [f"--model.{name}={value}" for name, value in SETTINGS.items()]
    flags += ["--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--data.batch_size", "8"]
    return ["fit", *flags, "--seed_everything", "3", "--trainer.max_epochs", "2"]


def same_weights(one: Path, other: Path) -> bool:
    a, b = (read_checkpoint(path) for path in (one, other))
    states = [checkpoint["state_dict"] for checkpoint in (a, b)]
    assert states[0].keys() == states[1].keys()
    assert a["global_step"] == b["global_step"]
    assert a["hyper_parameters"] == b["hyper_parameters"]
    return all(torch.equal(states[0][key], tensor) for key, tensor in states[1].items())


def test_a_notebook_gives_what_the_command_gives(made, command):
    assert main([*command, "--run_name", "typed"]) == 0
    run = Run("notebook", resume=True)
    run.fit(*made(), max_epochs=2)
    assert run.best_checkpoint == Path("checkpoints/notebook/best.ckpt")
    for path in (run.best_checkpoint, run.last_checkpoint):
        assert same_weights(path, Path("checkpoints/typed") / path.name)
    assert {path.name for path in run.folder.iterdir()} == {"best.ckpt", "last.ckpt", "config.yaml"}
    typed, written = (
        yaml.safe_load(Path(f"checkpoints/{name}/config.yaml").read_text()) for name in ("typed", "notebook")
    )
    for part in ("trainer", "model", "data", "seed_everything"):
        assert written[part] == typed[part], part
    assert list(Path("logs/notebook").glob("events.*"))


def test_the_command_reads_the_configuration_that_a_run_writes(made):
    run = Run("notebook", save_every_steps=4)
    run.fit(*made(), max_epochs=2)
    assert main(["fit", "--config", str(run.folder / "config.yaml"), "--run_name", "typed"]) == 0
    assert same_weights(run.last_checkpoint, Path("checkpoints/typed/last.ckpt"))
    assert yaml.safe_load(Path("checkpoints/typed/config.yaml").read_text())["save_every_steps"] == 4


def test_a_stopped_run_ends_as_the_run_that_was_not(made, capsys):
    """Here it ends later; instead of a damaged last.ckpt the previous one is used."""
    constant = {"schedule": "constant", "warmup_ratio": 0.0}
    whole = Run("whole")
    whole.fit(*made(**constant), max_epochs=3)
    run = Run("mine", resume=True)
    run.fit(*made(**constant), max_epochs=2)
    run.last_checkpoint.rename(run.folder / "previous.ckpt")
    run.last_checkpoint.write_bytes(b"PK half")
    run.fit(*made(**constant), max_epochs=3)
    assert "resume: checkpoints/mine/previous.ckpt" in capsys.readouterr().err
    assert same_weights(whole.last_checkpoint, run.last_checkpoint)


def test_the_command_and_a_notebook_resume_each_other(made, command):
    run = Run("mine", resume=True)
    run.fit(*made(), max_epochs=2)
    assert main([*command, "--run_name", "mine", "--resume"]) == 0
    run.fit(*made(), max_epochs=2)
    assert read_checkpoint(run.last_checkpoint)["global_step"] == 12


def test_changed_settings_are_refused_unless_forced(made):
    Run("mine").fit(*made(), max_epochs=1)
    model, data = made(learning_rate=1e-2)
    for objects, options in (((model, data), {}), (made(), {"gradient_clip_val": 1.0})):
        with pytest.raises(UserError, match="^resume: "):
            Run("mine", resume=True).fit(*objects, max_epochs=1, **options)
    forced = Run("mine", resume=True, force=True)
    forced.fit(model, data, max_epochs=2)
    checkpoint = read_checkpoint(forced.last_checkpoint)
    assert checkpoint["global_step"] == 12
    assert {group["initial_lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]} == {1e-2}
    assert set(checkpoint["lr_schedulers"][0]["base_lrs"]) == {1e-2}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("algorithm", "degree"), [("norm", 2), ("value", math.inf)])
def test_gradients_are_clipped(algorithm, degree, precision, made):
    model, data = made()
    clips = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
    Run("mine").fit(model, data, max_steps=2, precision=precision, **clips)
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    assert 5e-4 < torch.cat(gradients).norm(degree) < 1.001e-3
    assert model.optimizers().defaults["fused"]


def test_two_ways_to_write_a_path_are_one_setting(tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump({"data": {"source": "glue", "text_column": "~text"}}))
    check_same_run(saved, {"data": {"source": str(Path("glue").resolve()), "text_column": "~text"}})
    for name, value in (("source", "elsewhere"), ("text_column", "text")):
        with pytest.raises(UserError, match=f"data.{name} ") as changed:
            check_same_run(saved, {"data": {name: value}})
        assert changed.value.key == "resume"


def test_a_run_that_exists_is_not_written_over(made):
    run = Run("mine", save_every_minutes=None)
    run.fit(*made(), max_epochs=1)
    with pytest.raises(UserError, match="^run_name: "):
        run.fit(*made(), max_epochs=1)
    with pytest.raises(UserError, match="^run_name: "):
        Run("mine", ckpt_path=shutil.copy(run.last_checkpoint, "copy.ckpt")).fit(*made(), max_epochs=2)
    Run("mine", ckpt_path=run.last_checkpoint).fit(*made(), max_epochs=2)
    assert read_checkpoint(run.last_checkpoint)["global_step"] == 12


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"accelerator": "abacus"}, "trainer"),
        ({"strategy": "deepspeed"}, "trainer.strategy"),
        ({"precision": "16-true"}, "trainer.precision"),
    ],
)
def test_options_that_do_not_work(options, key, made):
    with pytest.raises(UserError, match=f"^{key}: "):
        Run("mine").fit(*made(), **options)
    assert not Path("checkpoints/mine/last.ckpt").exists()


def test_out_of_memory_says_what_to_do(made, monkeypatch):
    def starved(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model, data = made()
    monkeypatch.setattr(model, "training_step", starved)
    with pytest.raises(UserError, match=r"^trainer\.memory: "):
        Run("mine").fit(model, data, max_epochs=1)


def test_own_callbacks_and_loggers_are_used(made, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    class Steps(lightning.Callback):
        count = 0

        def on_train_batch_end(self, *given):
            self.count += 1

    steps = Steps()
    Run("mine", checkpoints=tmp_path / "c", logs=tmp_path / "l").fit(
        *made(), max_epochs=1, callbacks=steps, logger=CSVLogger(tmp_path, name="mine"), log_every_n_steps=2
    )
    assert steps.count == 6
    assert "throughput/tokens_per_second" in next(tmp_path.glob("mine/*/metrics.csv")).read_text()
    assert (tmp_path / "c" / "mine" / "best.ckpt").is_file()
    assert not (tmp_path / "l").exists()


def test_the_runs_trainer_is_lightnings(made):
    run, by_itself = Run("fit"), Run("trainer")
    run.fit(*made(), max_epochs=1)
    trainer = by_itself.trainer(max_epochs=1)
    assert isinstance(trainer, lightning.Trainer)
    trainer.fit(*made())
    assert same_weights(run.last_checkpoint, by_itself.last_checkpoint)
    assert (by_itself.folder / "config.yaml").is_file()


def test_the_runs_trainer_takes_loaders(made):
    run, by_loaders = Run("fit"), Run("loaders")
    run.fit(*made(), max_epochs=1)
    model, data = made()
    data.setup("fit")
    by_loaders.trainer(max_epochs=1).fit(model, data.train_dataloader(), data.val_dataloader())
    assert same_weights(run.last_checkpoint, by_loaders.last_checkpoint)
    assert yaml.safe_load((by_loaders.folder / "config.yaml").read_text())["data"] == {}


def test_the_runs_trainer_does_not_overwrite_a_run(made):
    run = Run("mine", resume=True)
    run.fit(*made(), max_epochs=1)
    before = run.last_checkpoint.read_bytes()
    with pytest.raises(UserError, match="^resume: "):
        run.trainer(max_epochs=1)
    assert run.last_checkpoint.read_bytes() == before


def test_a_model_does_not_train_on_another_encoders_tokens(made, tiny_encoder, glue_folder):
    model, _ = made()
    other = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder("bert"))
    with pytest.raises(UserError, match=r"^data\.encoder: "):
        Run("mine").fit(model, other, max_epochs=1)


@pytest.mark.parametrize("changed", [{"max_length": 32}, {"pairs": True}])
def test_a_model_does_not_train_on_texts_of_another_form(changed, made):
    _, data = made()
    other = LoRAClassifier(encoder=data.encoder, **{"max_length": data.max_length, **changed})
    with pytest.raises(UserError, match=f"^data.{next(iter(changed))}: "):
        Run("mine").fit(other, data, max_epochs=1)


def test_numbers_of_numpy_are_saved_as_pythons(made):
    run = Run("mine")
    run.fit(*made(learning_rate=numpy.float64(1e-3), warmup_ratio=numpy.float32(0.5)), max_epochs=1)
    settings = read_checkpoint(run.last_checkpoint)["hyper_parameters"]
    assert (type(settings["learning_rate"]), settings["warmup_ratio"]) == (float, 0.5)


def test_the_trainers_options_are_saved_as_plain_values(made):
    """Tuples and NumPy's numbers too: so saved, the same call resumes the run."""
    options = {"max_epochs": numpy.int64(1), "gradient_clip_val": numpy.float64(1.0), "callbacks": ()}
    for _ in range(2):
        run = Run("mine", resume=True)
        run.fit(*made(), **options)
        saved = yaml.safe_load(run.last_checkpoint.with_name("config.yaml").read_text())["trainer"]
        assert {name: saved[name] for name in options} == {**options, "callbacks": []}


def test_a_plugin_for_precision_is_refused(made):
    with pytest.raises(UserError, match=r"trainer\.plugins.*HalfPrecision.*trainer\.precision"):
        Run("mine").fit(*made(), plugins=[HalfPrecision("bf16-true")])


@pytest.mark.parametrize(
    ("was", "now"), [({}, {"query": 64.0}), ({"query": 64.0}, {}), ({"query": 1.0}, {"value": 1.0})]
)
def test_a_changed_pattern_is_another_run(was, now, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"lora": {"alpha_pattern": was}}}))
    with pytest.raises(UserError) as error:
        check_same_run(tmp_path / "config.yaml", {"model": {"lora": {"alpha_pattern": now}}})
    assert error.value.key == "resume"
    assert "model.lora.alpha_pattern" in str(error.value)


def test_the_same_cell_twice_trains_once(made):
    """In a notebook the second run of a cell has the same objects, and nothing left to train."""
    model, data = made()
    for _ in range(2):
        run = Run("notebook", resume=True)
        run.fit(model, data, max_epochs=2)
        last = read_checkpoint(run.last_checkpoint)
        assert last["global_step"] == 12
        assert all(torch.equal(last["state_dict"][key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("lora", [{}, {"lora_dropout": 0.1}])
def test_a_plain_trainer_trains_the_same_weights(lora, made):
    model, data = made(lora=lora)
    plain = lightning.Trainer(max_epochs=1, precision="32-true")
    plain.fit(model, data)
    run = Run("mine")
    run.fit(*made(lora=lora), max_epochs=1, precision="32-true")
    saved = read_checkpoint(run.last_checkpoint)
    assert dict(model.hparams) == saved["hyper_parameters"]
    assert all(torch.equal(saved["state_dict"][key], tensor) for key, tensor in model.state_dict().items())


def test_a_plain_trainer_validates_and_tests(made):
    trainer = lightning.Trainer(logger=False, enable_progress_bar=False)
    (validated,), (tested,) = trainer.validate(*made(), verbose=False), trainer.test(*made(), verbose=False)
    assert {key.removeprefix("val/"): value for key, value in validated.items()} == pytest.approx(
        {key.removeprefix("test/"): value for key, value in tested.items()}
    )


def test_a_logger_of_the_users_has_what_tensorboard_has(made):
    logger = CSVLogger("csvlogs")
    run = Run("other")
    run.fit(*made(), max_epochs=1, logger=logger, log_every_n_steps=1)
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert all(name in text for name in ("train/loss", "val/accuracy", "lr/head"))
    assert read_checkpoint(run.last_checkpoint)["global_step"] == 6
    assert not Path("logs/other").exists()
