"""The GLUE tasks (Wang et al., 2019), a row each, and the row for a user's own files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from lora_pl.errors import UserError

MetricName = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]


@dataclass(frozen=True)
class Task:
    """What tells one sentence classification task from another."""

    name: str
    """As the hub's `nyu-mll/glue` calls it."""
    folder: str
    """As a GLUE download calls its folder."""
    columns: tuple[str, ...]
    """The text columns on the hub: one sentence, or two for a pair."""
    file_columns: tuple[str, ...]
    """The text columns in the download's TSV files."""
    label_column: str
    """The label's column in the TSV files; on the hub it is always `label`."""
    labels: tuple[str, ...]
    """The class names by id; none for a regression."""
    metrics: tuple[MetricName, ...] = ("accuracy",)
    """Reported metrics; the first one chooses the best checkpoint."""
    header: tuple[str, ...] | None = None
    """The columns of TSV files that have no header line."""
    validation: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"validation": "dev.tsv"}))
    """The labelled splits to validate on, hub name to file name; the first one chooses the best checkpoint."""

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number rather than a class."""
        return not self.labels and self.name != CUSTOM


CUSTOM = "custom"

MNLI_VALIDATION = MappingProxyType(
    {"validation_matched": "dev_matched.tsv", "validation_mismatched": "dev_mismatched.tsv"}
)
SENTENCES = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
ENTAILMENT = ("entailment", "not_entailment")

GLUE_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sst2", "SST-2", ("sentence",), ("sentence",), "label", ("negative", "positive")),
        Task(
            "cola",
            "CoLA",
            ("sentence",),
            ("sentence",),
            "label",
            ("unacceptable", "acceptable"),
            metrics=("matthews", "accuracy"),
            header=("source", "label", "mark", "sentence"),
        ),
        Task(
            "mrpc",
            "MRPC",
            SENTENCES,
            ("#1 String", "#2 String"),
            "Quality",
            ("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
        ),
        Task(
            "qqp",
            "QQP",
            QUESTIONS,
            QUESTIONS,
            "is_duplicate",
            ("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
        ),
        Task("stsb", "STS-B", SENTENCES, SENTENCES, "score", (), metrics=("pearson", "spearman")),
        Task(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            SENTENCES,
            "gold_label",
            ("entailment", "neutral", "contradiction"),
            validation=MNLI_VALIDATION,
        ),
        Task("qnli", "QNLI", ("question", "sentence"), ("question", "sentence"), "label", ENTAILMENT),
        Task("rte", "RTE", SENTENCES, SENTENCES, "label", ENTAILMENT),
        Task("wnli", "WNLI", SENTENCES, SENTENCES, "label", ("not_entailment", "entailment")),
    )
}

CUSTOM_TASK = Task(CUSTOM, "", ("text",), ("text",), "label", ())
"""A user's own files: columns and labels come from the options and the files."""


def get_task(name: str) -> Task:
    """The row of the task; a UserError that names the nearest one where there is none."""
    if name == CUSTOM:
        return CUSTOM_TASK
    if name not in GLUE_TASKS:
        near = get_close_matches(name.lower().replace("-", ""), GLUE_TASKS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"task: expected one of {', '.join(GLUE_TASKS)} or {CUSTOM}, got {name!r}{hint}")
    return GLUE_TASKS[name]
