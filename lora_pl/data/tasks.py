"""The GLUE tasks (Wang et al., 2019), a row each, and the rows for a user's own files."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from lora_pl.data.classes import Classes, Classification, MultiLabel
from lora_pl.data.regression import Regression
from lora_pl.data.task import Task
from lora_pl.errors import UserError

CUSTOM = "custom"
MNLI_VALIDATION = {"validation_matched": "dev_matched.tsv", "validation_mismatched": "dev_mismatched.tsv"}
TEXT, SENTENCE = ("text",), ("sentence",)
SENTENCES, QUESTIONS = ("sentence1", "sentence2"), ("question1", "question2")
ENTAILMENT = ("entailment", "not_entailment")

GLUE_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Classification("sst2", "SST-2", SENTENCE, SENTENCE, "label", ("negative", "positive")),
        Classification(
            "cola", "CoLA", SENTENCE, SENTENCE, "label", ("unacceptable", "acceptable"),
            metrics=("matthews", "accuracy"), header=("source", "label", "mark", "sentence"),
        ),
        Classification(
            "mrpc", "MRPC", SENTENCES, ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
        ),
        Classification(
            "qqp", "QQP", QUESTIONS, QUESTIONS, "is_duplicate", ("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
        ),
        Regression("stsb", "STS-B", SENTENCES, SENTENCES, "score", (), metrics=("pearson", "spearman")),
        Classification(
            "mnli", "MNLI", ("premise", "hypothesis"), SENTENCES, "gold_label",
            ("entailment", "neutral", "contradiction"), validation=MNLI_VALIDATION,
        ),
        Classification("qnli", "QNLI", ("question", "sentence"), ("question", "sentence"), "label", ENTAILMENT),
        Classification("rte", "RTE", SENTENCES, SENTENCES, "label", ENTAILMENT),
        Classification("wnli", "WNLI", SENTENCES, SENTENCES, "label", ("not_entailment", "entailment")),
    )
}  # fmt: skip

OWN_TASKS: dict[str, Classes] = {
    task.name: task
    for task in (
        Classification(CUSTOM, "", TEXT, TEXT, "label", (), metrics=("accuracy", "macro_f1")),
        MultiLabel("multilabel", "", TEXT, TEXT, "label", (), metrics=("micro_f1", "macro_f1", "exact_match")),
    )
}
"""A user's own files: columns and labels come from the options and the files."""
CUSTOM_TASK = OWN_TASKS[CUSTOM]


def task_name(given: str | None, own_files: bool) -> str:
    """The task that is meant, where none may be given."""
    return given or (CUSTOM if own_files else "sst2")


def task_of(settings: Mapping[str, Any]) -> Task:
    """The task that a model with these settings has."""
    return get_task(settings["task"]).customized(settings["label_names"], settings["pairs"])


def get_task(name: str) -> Task:
    """The row of the task; a UserError that names the nearest one where there is none."""
    known = {**GLUE_TASKS, **OWN_TASKS}
    if name not in known:
        near = get_close_matches(re.sub("[-_]", "", name.lower()), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        named = f"{', '.join(GLUE_TASKS)}, or {' or '.join(OWN_TASKS)} for your own files"
        raise UserError("task", f"expected one of {named}, got {name!r}{hint}")
    return known[name]
