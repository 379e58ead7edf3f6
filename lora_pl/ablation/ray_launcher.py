"""Trials in several processes or on several machines, by Ray (the extra `ray`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from lora_pl.ablation.study import Outcome, RunUnit, Unit
from lora_pl.errors import UserError

RETRIES = 3
"""How often a unit is run again after its worker was lost."""


@dataclass(frozen=True)
class RayLauncher:
    """Runs `workers` units at a time, each in its own worker process, in any order.

    It joins the cluster of the environment variable RAY_ADDRESS, whose machines must see the study's folder, the
    encoder and the data under the same paths; without it, it starts a local cluster. A unit whose worker is lost is
    run again.
    """

    workers: int

    def __call__(self, units: Sequence[Unit], run: RunUnit) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each unit as it finishes.

        Raises:
            UserError: `launcher`, ray is not installed.
        """
        if find_spec("ray") is None:
            raise UserError("launcher", "ray is not installed; pip install 'lora_pl[ray]'")
        import ray

        joins = "RAY_ADDRESS" in os.environ
        local = {} if joins else {"num_cpus": self.workers, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="error", **local)
        try:
            yield from self._outcomes(ray, units, run)
        finally:
            ray.shutdown()

    def _outcomes(self, ray: Any, units: Sequence[Unit], run: RunUnit) -> Iterator[list[Outcome]]:
        needs = {"num_cpus": 1, "num_gpus": 1 if torch.cuda.is_available() else 0}
        # errors are outcomes or concern all units: only what Ray itself lost is run again
        task = ray.remote(max_retries=RETRIES, retry_exceptions=False, **needs)(_run)
        left = list(units)
        running = [task.remote(run, left.pop(0)) for _ in range(min(self.workers, len(left)))]
        while running:
            (done,), running = ray.wait(running, num_returns=1)
            if left:
                running.append(task.remote(run, left.pop(0)))
            try:
                yield ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error


def _run(run: RunUnit, unit: Unit) -> list[Outcome]:
    return run(unit)
