"""Learning-rate schedules over optimizer steps."""

from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["constant", "linear"]


def make_schedule(optimizer: Optimizer, kind: Schedule, warmup_steps: int, total_steps: int) -> LambdaLR:
    """The factor on the learning rate at optimizer step t of T, with w steps of warm-up.

    .. math:: f(t) = t / w \\ (t < w), \\quad 1 \\ (\\text{constant}), \\quad (T - t) / (T - w) \\ (\\text{linear})
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        if kind == "constant":
            return 1.0
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return LambdaLR(optimizer, factor)
