"""The first page of a verb's help: the options that people use. Light: no parser is made for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_pl.cli.verbs import described

OPTIONS = {
    "model.encoder": "hub name or folder [package://lora_pl/encoder/mini]",
    "model.method": "lora, head (nothing else) or full (everything) [lora]",
    "model.lora.r": "rank of the update [4]",
    "model.lora.lora_alpha": "the update is scaled by alpha / r [16.0]",
    "model.lora.lora_dropout": "dropout of the update's input [0.0]",
    "model.lora.target_modules": "names, attention, mlp, all-linear [query,value]",
    "model.lora.variant": "lora or dora [lora]",
    "model.learning_rate": "AdamW's, at the schedule's peak [0.0001]",
    "model.schedule": "constant or linear, to zero [constant]",
    "model.warmup_ratio": "share of the steps that warm up [0.0]",
    "model.start_from": "checkpoint whose adapter training starts from",
    "data.source": "hub, sample, the folder of a GLUE download, hub:NAME [hub]",
    "data.task": "a GLUE task; custom or multilabel, for files of your own",
    "data.train_file": "CSV, TSV, JSON lines or Parquet, instead of a source",
    "data.validation_file": "such a file to measure on",
    "data.validation_share": "or the share of the training sentences to measure on",
    "data.test_file": "such a file for `lora_pl test`",
    "data.text_column": "the column of the texts",
    "data.text_pair_column": "the column of the second texts, for pairs",
    "data.label_column": "the column of the labels",
    "data.max_length": "tokens at which a text is cut [64]",
    "data.batch_size": "sentences per step and process [32]",
    "data.eval_batch_tokens": "tokens per batch; fewer need less memory [4096]",
    "config": "YAML file of options; flags win over it",
    "ckpt_path": "best.ckpt or last.ckpt of a run",
    "run_name": "names checkpoints/NAME and logs/NAME",
    "resume": "resume the run of that name, if there is one",
    "early_stopping_patience": "end after so many validations without a new best",
    "seed_everything": "seed of weights, data and dropout [0]",
    "trainer.max_epochs": "epochs to train [3]",
    "trainer.precision": "32-true, bf16-mixed, ...; else the device's fastest",
    "trainer.accelerator": "cpu, gpu, ... [auto]",
    "trainer.devices": "how many, or which [auto]",
    "trainer.accumulate_grad_batches": "batches per step [1]",
    "trainer.limit_train_batches": "batches per epoch, to try something out",
    "trainer.limit_val_batches": "batches of validation, to try something out",
    "trainer.limit_test_batches": "batches of the test, to try something out",
    "trainer.callbacks": "EarlyStopping, ...",
    "errors": "lists misclassified texts: .jsonl, .csv or .parquet",
    "metrics": "writes all metrics, every class's too: .json",
    "input": "text, CSV, TSV, JSON lines, Parquet; - is stdin [-]",
    "input_format": "of stdin: text, csv, tsv or jsonl",
    "keep_columns": "columns of the input to write beside the answers",
    "output": ".jsonl, .csv or .parquet; - is stdout [-]",
    "adapter": "NAME=CHECKPOINT, several times: adapters on one base",
    "vary": "OPTION VALUE ...: an axis, any option of fit",
    "ranks": "axis: values of model.lora.r",
    "learning_rates": "axis: values of model.learning_rate",
    "targets": "axis: values of model.lora.target_modules",
    "head_rate": "also train the head alone, at these rates",
    "full_rate": "also train the whole encoder, at these rates",
    "seeds": "random seeds per setting [5]",
    "pack": "LoRA trials to train jointly, or auto [1]",
    "launcher": "local or ray, for several workers [local]",
}
"""Each option in a line, with its [default]."""

TRAINED = ("model.encoder", "model.method", "model.lora.r", "model.lora.lora_alpha", "model.lora.lora_dropout",
           "model.lora.target_modules", "model.lora.variant", "model.learning_rate", "model.schedule",
           "model.warmup_ratio", "model.start_from")  # fmt: skip
COLUMNS = ("data.text_column", "data.text_pair_column", "data.label_column")
DATA = ("data.source", "data.task", "data.train_file", "data.validation_file", "data.validation_share",
        "data.test_file", *COLUMNS, "data.max_length", "data.batch_size")  # fmt: skip
DEVICE = ("trainer.precision", "trainer.accelerator")
CKPT = "--ckpt_path checkpoints/NAME/best.ckpt"
OF_CHECKPOINT = {
    "model.encoder": "the base, if it has moved",
    "data.source": "hub, sample or the folder of a GLUE download",
    "data.validation_file": "CSV, TSV, JSON lines or Parquet, instead of a source",
    "data.test_file": "CSV, TSV, JSON lines or Parquet, instead of the validation split",
    "data.max_length": "tokens at which a text is cut",
}
"""Options whose defaults are those in the checkpoint."""


@dataclass(frozen=True)
class FirstPage:
    """A verb's options by group, and examples."""

    groups: Mapping[str, tuple[str, ...]]
    examples: tuple[str, ...]
    lines: Mapping[str, str] = field(default_factory=dict)
    """Of options that this verb describes in its own way."""


def _evaluation(verb: str, file: str, limit: str) -> FirstPage:
    return FirstPage(
        {
            "what is measured": ("ckpt_path", "config", "model.encoder"),
            "what is written": ("metrics", "errors"),
            "data, by default the run's": ("data.source", file, *COLUMNS, "data.max_length", "data.eval_batch_tokens"),
            "trainer": (*DEVICE, "trainer.devices", limit),
        },
        (
            f"lora_pl {verb} {CKPT}",
            f"lora_pl {verb} {CKPT} --{file} held_out.csv",
            f"lora_pl {verb} {CKPT} --metrics metrics.json",
        ),
        OF_CHECKPOINT,
    )


PAGES = {
    "fit": FirstPage(
        {
            "what is trained": TRAINED,
            "data": DATA,
            "run": ("config", "run_name", "resume", "ckpt_path", "early_stopping_patience", "seed_everything"),
            "trainer": ("trainer.max_epochs", *DEVICE, "trainer.devices", "trainer.accumulate_grad_batches",
                        "trainer.limit_train_batches", "trainer.callbacks"),
        },
        (
            "lora_pl fit --config configs/demo.yaml",
            "lora_pl fit --config configs/recipe.yaml --data.train_file reviews.csv \\\n"
            "    --data.validation_file held_out.csv --data.text_column review",
            "lora_pl fit --config configs/glue/rte.yaml --run_name rte --resume",
        ),
        {"ckpt_path": "best.ckpt or last.ckpt of a run, to resume from"},
    ),
    "validate": _evaluation("validate", "data.validation_file", "trainer.limit_val_batches"),
    "test": _evaluation("test", "data.test_file", "trainer.limit_test_batches"),
    "predict": FirstPage(
        {
            "model": ("ckpt_path", "adapter", "config", "model.encoder"),
            "input and output": ("input", "input_format", "keep_columns", "output", "data.text_column",
                                 "data.text_pair_column", "data.max_length", "data.eval_batch_tokens"),
            "device": DEVICE,
        },
        (
            f"echo 'A fine film.' | lora_pl predict {CKPT}",
            f"lora_pl predict {CKPT} --input reviews.csv \\\n    --data.text_column review --output labels.csv",
            "lora_pl predict --adapter a=A/best.ckpt --adapter b=B/best.ckpt --input x.txt",
        ),
        OF_CHECKPOINT,
    ),
    "ablate": FirstPage(
        {
            "what is compared": ("vary", "ranks", "learning_rates", "targets", "head_rate", "full_rate", "seeds"),
            "what is trained": TRAINED,
            "data": DATA,
            "study": ("config", "output", "pack", "launcher", "trainer.max_epochs", *DEVICE),
        },
        (
            "lora_pl ablate --config configs/ablation.yaml --ranks 1 2 4 8 --seeds 5",
            "lora_pl ablate --config configs/demo.yaml --vary model.lora.variant lora dora",
            "lora_pl ablate report logs/ablation/NAME",
        ),
        {"output": "the study's folder; else logs/ablation/CONFIG"},
    ),
}  # fmt: skip


def first_page(verb: str) -> str:
    """What `lora_pl VERB --help` prints."""
    page = PAGES[verb]
    about = {**OPTIONS, **page.lines}
    lines = [f"usage: lora_pl {verb} [options]", "", described(verb)]
    for title, options in page.groups.items():
        width = max(map(len, options)) + 2
        lines += ["", f"{title}:", *(f"  --{option:<{width}}{about[option]}" for option in options)]
    lines += ["", f"[defaults] in brackets; every option: lora_pl {verb} --help all", "", "examples:"]
    return "\n".join([*lines, *(f"  {example}" for example in page.examples)])
