"""The wording of typical mistakes; elsewhere tests assert keys and exit codes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from lora_pl import LoRAClassifier, LoRAConfig, Run, SentenceDataModule
from lora_pl.cli.main import main
from lora_pl.errors import UserError
from lora_pl.lora import LoRAError
from tests.cli.mistakes import error_of

FIT = "fit --model.encoder {encoder} --data.source {source} --run_name mine "
ABLATE = "ablate --model.encoder {encoder} --data.source {source} --output study "
COMMANDS = [
    ("fti", "verb",
     "expected one of fit, validate, test, predict, export, import, params, ablate, got 'fti'; did you mean fit?"),
    (FIT + "--model.learning_rte 1", "usage",
     "there is no option --model.learning_rte; did you mean --model.learning_rate?"),
    (FIT + "--lr 1e-3", "usage", "there is no option --lr; did you mean --model.learning_rate?"),
    (FIT + "--learning-rate 1e-3", "usage",
     "there is no option --learning-rate; did you mean --model.learning_rate?"),
    (FIT + "--encoder x", "usage", "there is no option --encoder; did you mean --model.encoder?"),
    (FIT + "--r 8", "usage", "there is no option --r; did you mean --model.lora.r?"),
    (FIT + "--epochs 3", "usage", "there is no option --epochs; did you mean --trainer.max_epochs?"),
    (FIT + "--data.label_names a,b", "data.label_names", "expected a list such as [a,b], got a,b"),
    (FIT + "--data.label_names [yes,no]", "data.label_names",
     'expected a list such as [a,b], got [True, False]; put numbers and words such as yes in quotes: ["yes","1"]'),
    ("predict --keep_columns [1]", "keep_columns",
     'expected str, got 1; put numbers and words such as yes in quotes: ["yes","1"]'),
    (FIT + "--trainer.precision fp16", "trainer.precision",
     "expected one of 64, 32, 16, transformer-engine, transformer-engine-float16, 16-true, 16-mixed, bf16-true, "
     "bf16-mixed, 32-true, 64-true, bf16, got fp16"),
    (FIT + "--trainer.callbacks EarlyStoping", "trainer.callbacks",
     "no class EarlyStoping is known; give its name as its module spells it, or its dotted path"),
    (FIT + "--trainer.logger CSVLogger", "trainer.logger",
     "the class needs save_dir; give it as init_args: {{save_dir: ...}}"),
    (FIT + "--model.lora.r four", "model.lora.r", "expected int, got four"),
    (FIT + "--model.schedule cosine", "model.schedule", "expected one of constant, linear, got cosine"),
    (FIT + "--model.lora.r 17", "r",
     "expected at most 16, the smaller side of encoder.layer.0.attention.self.query, got 17"),
    (FIT + "--data.source nowhere", "data.source",
     "nowhere is no folder; expected hub, sample or the folder of a GLUE download"),
    (FIT + "--data.batch_size 0", "data.batch_size", "expected at least 1, got 0"),
    (FIT + "--trainer.strategy fsdp", "trainer.strategy",
     "fsdp shards the model over devices, but checkpoints need whole adapters; take ddp, with a copy of the frozen "
     "encoder on each device"),
    (FIT + "--data.folds 5", "data.fold", "expected 0 to 4 beside --data.folds 5, got none"),
    (FIT + "--data.validation_share 0.01", "data.validation_share",
     "0.01 of 48 different sentences leaves 0 to validate on and 48 to train on; expected at least 2 in each, one per "
     "class"),
    (FIT + "--early_stopping_patience 0", "early_stopping_patience", "expected at least 1 validation, got 0"),
    (FIT + "--run_name a/b", "run_name", "expected a name without slashes, got 'a/b'"),
    (FIT + "--save_every_steps 0", "save_every_steps", "expected more than 0, got 0"),
    (FIT + "--resume --ckpt_path x.ckpt", "resume", "expected --resume or --ckpt_path, got both"),
    (FIT + "--trainer.max_epochs 1 --trainer.callbacks EarlyStopping --trainer.callbacks.monitor val_loss",
     "trainer.callbacks",
     "Early stopping conditioned on metric `val_loss` which is not available. Pass in or modify your `EarlyStopping` "
     "callback to use any of the following: `train/loss`, `val/loss`, `val/accuracy`, `train/accuracy`"),
    ("validate", "ckpt_path", "expected --ckpt_path checkpoints/NAME/best.ckpt, got none"),
    ("validate --ckpt_path x.ckpt", "checkpoint.missing", "x.ckpt: no such checkpoint"),
    ("export --ckpt_path x.ckpt", "output", "expected --output, got none; see lora_pl export --help"),
    (ABLATE + "--ranks 0", "r", "expected an integer >= 1, got 0"),
    (ABLATE + "--trainer.devices 2", "trainer.devices",
     "a trial runs on one device, got 2; for several use --launcher ray"),
    (ABLATE + "--data.batching padded --pack 2", "pack",
     "joint trials need packed batches, and those of {encoder} are padded; take --pack 1"),
    (ABLATE + "--resume", "resume", "rerun the same command to resume a study; leave out --resume and --force"),
    ("ablate report empty", "report", "empty holds no finished trial; expected the folder of `lora_pl ablate`"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "key", "message"), COMMANDS, ids=[key for _, key, _ in COMMANDS])
def test_of_a_command(command, key, message, tiny_encoder, glue_folder, capsys):
    places = {"encoder": tiny_encoder(), "source": str(glue_folder)}
    assert main(command.format(**places).split()) != 0
    assert error_of(capsys.readouterr().err) == (key, message.format(**places))


def other_options(encoder: str, source: str) -> None:
    data = SentenceDataModule(source=source, encoder=encoder)
    Run("mine").fit(LoRAClassifier.for_data(data), data, max_steps=1)
    Run("mine", resume=True).fit(LoRAClassifier.for_data(data, learning_rate=1e-2), data, max_steps=1)


def same_name(encoder: str, source: str) -> None:
    Path("checkpoints/mine").mkdir(parents=True)
    Path("checkpoints/mine/last.ckpt").touch()
    data = SentenceDataModule(source=source, encoder=encoder)
    Run("mine").fit(LoRAClassifier.for_data(data), data)


def unknown_option(encoder: str, source: str) -> None:
    data = SentenceDataModule(source=source, encoder=encoder)
    Run("mine").fit(LoRAClassifier.for_data(data), data, max_epoch=1)


def plain_trainer(verb: str, **options: object) -> Callable[[str, str], None]:
    def run(encoder: str, source: str) -> None:
        data = SentenceDataModule(source=source, encoder=encoder)
        trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, **options)
        getattr(trainer, verb)(LoRAClassifier.for_data(data), datamodule=data)

    return run


CALLS = [
    (other_options, "resume",
     "these options differ from the saved run: model.learning_rate (was 0.0001, now 0.01); leave them as they were, or "
     "add --force"),
    (same_name, "run_name",
     "the run mine exists (checkpoints/mine); choose another name, or resume it by --resume (resume=True), or "
     "--ckpt_path checkpoints/mine/last.ckpt"),
    (unknown_option, "trainer", "Trainer.__init__() got an unexpected keyword argument 'max_epoch'"),
    (plain_trainer("fit", precision="bf16-true"), "trainer.precision",
     "adapters and head are fp32, got bf16-true; take bf16-mixed, 16-mixed or 32-true (the frozen weights' type is "
     "model.base_dtype)"),
    (plain_trainer("predict"), "predict", "a data module has no texts to predict; call model.predict(texts)"),
    (lambda *given: LoRAConfig(r=0), "r", "expected an integer >= 1, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "key", "message"), CALLS, ids=[key for _, key, _ in CALLS])
def test_of_a_call(call, key, message, tiny_encoder, glue_folder):
    with pytest.raises((UserError, LoRAError)) as error:
        call(tiny_encoder(), str(glue_folder))
    assert (error.value.key, str(error.value)) == (key, f"{key}: {message}")
