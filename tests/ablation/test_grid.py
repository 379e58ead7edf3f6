from dataclasses import replace

import pytest

from lora_pl.ablation.grid import Grid, Trial, alpha_of
from lora_pl.errors import UserError
from lora_pl.lora import LoRAConfig

BASE = LoRAConfig(r=4, lora_alpha=16)


def grid(**changes) -> Grid:
    given = {"ranks": [1, 4], "seeds": range(3), "learning_rates": [1e-3], "alpha_rules": ["fixed"],
             "targets": [("query", "value")], "base": BASE, **changes}  # fmt: skip
    return Grid(**given)


@pytest.mark.parametrize(
    ("rule", "scalings"), [("fixed", (16, 4, 1)), ("proportional", (4, 4, 4)), ("rslora", (16, 8, 4))]
)
def test_the_rules_for_alpha(rule, scalings):
    assert [alpha_of(rule, rank, BASE) / rank for rank in (1, 4, 16)] == pytest.approx(scalings)
    trials = grid(ranks=[1, 4, 16], seeds=[0], alpha_rules=[rule]).trials()
    assert [trial.scale for trial in trials] == pytest.approx(scalings)


@pytest.mark.parametrize(
    ("rule", "scales"), [("fixed", (16, 8, 4)), ("proportional", (8, 8, 8)), ("rslora", (16, 8, 4))]
)
def test_the_rules_for_alpha_over_rslora(rule, scales):
    trials = grid(ranks=[1, 4, 16], seeds=[0], alpha_rules=[rule], base=replace(BASE, scaling="rslora")).trials()
    assert [trial.scale for trial in trials] == pytest.approx(scales)


def test_every_combination_once_and_the_references():
    rules = ["fixed", "rslora"]
    trials = grid(alpha_rules=rules, targets=[("query",), ("query", "value")], references={"head": 1e-2}).trials()
    assert len(trials) == 3 * (2 * 2 * 2 + 1)
    assert len({trial.name for trial in trials}) == len(trials)
    assert [trial.seed for trial in trials] == sorted(trial.seed for trial in trials)


def test_a_trial_changes_what_it_varies_and_nothing_else():
    shared = {"method": "lora", "learning_rate": 1.0, "dropout": 0.1, "lora": {"r": 4, "lora_dropout": 0.2}}
    found = Trial("lora", 0, 1e-3, 8, "fixed", 16.0, ("query",)).settings(shared)
    lora = {"r": 8, "lora_alpha": 16.0, "target_modules": ["query"], "lora_dropout": 0.2}
    assert found == {"method": "lora", "learning_rate": 1e-3, "dropout": 0.1, "lora": lora}
    without = {"train_biases": "none", "train_norms": False}  # which go with adapters
    given = {**shared, "train_biases": "all", "train_norms": True}
    assert Trial("lora", 0, 1e-3, 8, "fixed", 16.0, ("query",)).settings(given) == {**given, **found}
    assert Trial("head", 0, 1e-2).settings(given) == {**shared, **without, "method": "head", "learning_rate": 1e-2}


@pytest.mark.parametrize(
    "changes", [{"ranks": [0]}, {"ranks": [2, 2]}, {"ranks": []}, {"seeds": range(0)}, {"learning_rates": [0.0]}]
)
def test_grids_that_make_no_sense(changes):
    with pytest.raises(UserError) as error:
        grid(**changes)
    assert error.value.key == next(iter(changes))
