"""Tasks whose answers are scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lora_pl.data.task import Label, Prediction, Task
from lora_pl.errors import UserError


@dataclass(frozen=True)
class Regression(Task):
    """A score: mean squared error."""

    problem_type: ClassVar[str] = "regression"
    takes_single_texts: ClassVar[bool] = True

    @property
    def outputs(self) -> int:
        """One."""
        return 1

    def parse(self, text: str, where: str) -> float:
        """The score."""
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise UserError("data.label", f"{where}: expected a number as the score, got {text[:40]!r}")
        return score

    def distribution(self, labels: NDArray[np.float32]) -> str:
        """Least, mean and largest score."""
        return f"scores {labels.min():g} to {labels.max():g}, mean {labels.mean():.3g}"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(logits.squeeze(-1), labels)

    def decisions(self, logits: Tensor) -> Tensor:
        """The predicted scores."""
        return logits.squeeze(-1)

    def error(self, label: Label, prediction: Prediction) -> dict[str, Any]:
        """With their difference."""
        assert isinstance(label, float)
        score = prediction["score"]
        return {"label": label, "prediction": score, "difference": abs(score - label)}

    def _answers(self, logits: Tensor) -> list[Prediction]:
        """The score."""
        return [{"score": score} for score in logits.squeeze(-1).tolist()]
