"""What a report compares with what."""

import pytest

from lora_pl.ablation.groups import arms_of, groups_of, series_of
from lora_pl.ablation.statistics import compare
from lora_pl.ablation.table import OK

RANK, RATE, TASK = "model.lora.r", "model.learning_rate", "data.task"


def row(arm: str, seed: int, value: float, epoch: int = 2, metric: str = "accuracy", **axes: str) -> dict:
    own = {"trial": f"{arm}-{axes}-{seed}", "arm": arm, "seed": seed, "status": OK, "epoch": epoch, "metric": metric}
    return {**own, "best": value, "last": value, **axes}


def rows(task: str = "rte", shift: float = 0.0) -> list[dict]:
    found = [
        row("LoRA", seed, 0.5 + shift + 0.01 * r, **{RANK: str(r), RATE: rate, TASK: task})
        for seed in (0, 1)
        for r in (16, 2)
        for rate in ("0.001", "0.01")
    ]
    return found + [row("full", 0, 0.6 + shift + rate, **{RATE: f"{rate:g}", TASK: task}) for rate in (1e-4, 1e-3)]


def compared(series) -> dict[tuple[str, str], list[str]]:
    return {(one.axis, one.name): [group.name for group in one.groups] for one in series}


def test_a_setting_is_named_by_what_varies():
    assert [group.name for group in groups_of(rows())][:2] == [
        "learning rate 0.001, r = 16",
        "learning rate 0.01, r = 16",
    ]
    assert groups_of(rows())[-1].name == "full, learning rate 0.001"
    assert [group.name for group in groups_of(rows()[:1])] == [""]
    assert [len(group.rows) for group in groups_of([*rows(), row("LoRA", 0, 9.0, **{RANK: "2"}, status="failed")])] == [
        2, 2, 2, 2, 1, 1
    ]  # fmt: skip


def test_the_last_epoch_counts():
    early = {**rows()[0], "epoch": 1, "last": 0.1}
    assert groups_of([early, *rows()])[0].first["last"] == rows()[0]["last"]


def test_settings_are_compared_along_every_axis_with_the_others_fixed():
    assert compared(series_of(groups_of(rows()))) == {
        (RATE, "r = 16"): ["learning rate 0.001", "learning rate 0.01"],
        (RATE, "r = 2"): ["learning rate 0.001", "learning rate 0.01"],
        (RANK, "learning rate 0.001"): ["r = 2", "r = 16"],
        (RANK, "learning rate 0.01"): ["r = 2", "r = 16"],
        (RATE, "full"): ["learning rate 0.0001", "learning rate 0.001"],
    }


def test_nothing_is_compared_with_the_results_on_other_sentences():
    both = groups_of([*rows(), *rows("mrpc", 0.2)])
    for one in [*series_of(both), *arms_of(both)]:
        assert len({group.first[TASK] for group in one.groups}) == 1
    assert len(series_of(both)) == 2 * 5


def test_folds_are_samples_of_a_setting_as_seeds_are():
    """Of another axis the values are compared fold by fold."""
    found = [
        row("LoRA", seed, (1 + int(fold)) * 0.01 * r + seed, **{RANK: str(r), "data.fold": fold})
        for r in (2, 16)
        for fold in "012"
        for seed in (0, 1)
    ]
    groups = groups_of(found[1:])  # one is missing
    assert [group.name for group in groups] == ["r = 2", "r = 16"]
    assert groups[1].mean == pytest.approx(2 * 0.16 + 0.5)
    (series,) = series_of(groups)
    (difference,) = compare({group.name: group.results() for group in series.groups})
    assert difference.difference.n == 5
    assert difference.difference.mean == pytest.approx(-0.14 * (1 + 2 + 2 + 3 + 3) / 5)
    assert arms_of(groups) == []


def test_an_arm_stands_at_its_best_point():
    (one, other) = arms_of(groups_of([*rows(), *rows("mrpc", 0.2)]))
    assert [one.name, other.name] == ["rte", "mrpc"]
    assert [group.first.get(RANK) for group in one.groups] == ["16", None]
    assert [group.first[RATE] for group in one.groups][1] == "0.001"
    assert [group.mean for group in other.groups] == pytest.approx([0.86, 0.801])
    (least,) = arms_of(groups_of([{**row, "metric": "loss"} for row in rows()]))
    assert [group.first.get(RANK) for group in least.groups] == ["2", None]
