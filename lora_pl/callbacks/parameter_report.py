"""How many parameters are trained and how many are frozen."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from torch import nn

from lora_pl.callbacks.tensorboard import tensorboard_loggers
from lora_pl.model.parameters import count_parameters, lora_by_module
from lora_pl.reporting import say

Row = tuple[str, int, float]


class ParameterReport(Callback):
    """Prints a table of trained and frozen parameters at the start of fit, and writes it to TensorBoard."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and log the table."""
        rows = parameter_rows(pl_module.encoder, pl_module.head)  # type: ignore[arg-type]
        say(_table(rows))
        for logger in tensorboard_loggers(trainer):
            logger.experiment.add_text("parameters", _markdown(rows))


def parameter_rows(encoder: nn.Module, head: nn.Module) -> list[Row]:
    """(part, parameters, percent of all), sums last."""
    counts = count_parameters(encoder, head)
    parts = [
        *((f"LoRA on {kind} ({layers} layers)", n) for kind, (layers, n) in lora_by_module(encoder).items()),
        ("LoRA", counts.lora),
        *([("biases and norms", counts.in_place)] if 0 < counts.in_place < counts.encoder else []),
        ("head", counts.head),
        ("trainable", counts.trainable),
        ("frozen", counts.frozen),
        ("total", counts.total),
    ]
    return [(name, n, 100 * n / counts.total) for name, n in parts]


def _table(rows: list[Row]) -> Table:
    table = Table(title="Parameters", title_justify="left")
    table.add_column("part", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("% of total", justify="right", no_wrap=True)
    for name, n, percent in rows:
        if name in ("LoRA", "trainable"):
            table.add_section()
        table.add_row(name, f"{n:,}", f"{percent:.3f}", style="bold" if name == "trainable" else None)
    return table


def _markdown(rows: list[Row]) -> str:
    lines = [f"| {name} | {n:,} | {percent:.3f} |" for name, n, percent in rows]
    return "\n".join(["| part | parameters | % of total |", "| --- | ---: | ---: |", *lines])
