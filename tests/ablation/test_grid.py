import pytest

from lora_pl.ablation.grid import LONGEST, Arm, Grid, Trial, lora_of, told
from lora_pl.errors import UserError

SHARED = {"model.method": "lora", "model.lora.r": 4, "model.lora.lora_alpha": 16.0, "model.learning_rate": 1e-3,
          "data.task": None, "data.source": "glue/{folder}"}  # fmt: skip
RANK, ALPHA, RULE, RATE = "model.lora.r", "model.lora.lora_alpha", "alpha_rule", "model.learning_rate"
FULL = Arm("full", {"model.method": "full"}, {RATE: [1e-4, 1e-3]})


def grid(shared=None, **changes) -> Grid:
    return Grid({**SHARED, **(shared or {})}, **{"arms": [Arm("LoRA")], "axes": {RANK: [1, 4]}, "seeds": 3, **changes})


def scales(found: Grid, **shared) -> list[float]:
    return [lora_of({**SHARED, **shared, **trial.options}).scale for trial in found.trials()]


@pytest.mark.parametrize(
    ("rule", "plain", "rslora"),
    [("fixed", (16, 4, 1), (16, 8, 4)), ("proportional", (4, 4, 4), (8, 8, 8)), ("rslora", (16, 8, 4), (16, 8, 4))],
)
def test_the_rules_for_alpha(rule, plain, rslora):
    axes = {RANK: [1, 4, 16], RULE: [rule]}
    assert scales(grid(axes=axes, seeds=1)) == pytest.approx(plain)
    over = {"model.lora.scaling": "rslora"}
    assert scales(grid(over, axes=axes, seeds=1), **over) == pytest.approx(rslora)


def test_proportional_is_the_scale_of_the_arm_or_task():
    arms = [Arm("plain"), Arm("strong", {ALPHA: 64.0}), Arm("recipe", {ALPHA: 48.0, RANK: 12})]
    of_task = {"rte": {ALPHA: 32.0}}
    axes = {"data.task": ["sst2", "rte"], RULE: ["proportional"], RANK: [1, 4]}
    found = grid(arms=arms, axes=axes, of_task=lambda task: of_task.get(task, {}), seeds=1)
    assert scales(found) == [4, 4, 8, 8, *[16] * 4, *[4] * 2]


def test_every_combination_once_and_seed_by_seed():
    trials = grid(arms=[Arm("LoRA"), FULL], axes={RANK: [1, 4], RULE: ["fixed", "rslora"]}).trials()
    assert len(trials) == 3 * (2 * 2 + 2)
    assert len({trial.name for trial in trials}) == len(trials)
    assert [trial.seed for trial in trials] == sorted(trial.seed for trial in trials)


def test_an_arm_has_the_axes_that_mean_something_to_it():
    arms = [Arm("fixed", {RANK: 8}), Arm("LoRA"), FULL]
    found = grid(arms=arms, axes={RANK: [1, 4], RATE: [1e-2]}, seeds=1).trials()
    assert [(trial.arm, dict(trial.axes)) for trial in found] == [
        ("fixed", {RATE: 1e-2}),
        ("LoRA", {RANK: 1, RATE: 1e-2}),
        ("LoRA", {RANK: 4, RATE: 1e-2}),
        ("full", {RATE: 1e-4}),
        ("full", {RATE: 1e-3}),
    ]


def test_an_arm_of_fewer_seeds():
    arms = [Arm("LoRA"), Arm("full", {"model.method": "full"}, seeds=1)]
    assert [trial.seed for trial in grid(arms=arms).trials() if trial.arm == "full"] == [0]


def test_a_trial_changes_what_it_varies_and_nothing_else():
    shared = {"model": {"method": "lora", "learning_rate": 1.0, "lora": {"r": 4, "lora_dropout": 0.2}}, "trainer": {}}
    trial = Trial(
        "LoRA", 0, options={RANK: 8, RULE: "fixed", "trainer.max_epochs": 3, "model.lora.rank_pattern": {"a.b": 2}}
    )
    assert trial.config(shared) == {
        "model": {"method": "lora", "learning_rate": 1.0,
                  "lora": {"r": 8, "lora_dropout": 0.2, "rank_pattern": {"a.b": 2}}},
        "trainer": {"max_epochs": 3},
    }  # fmt: skip
    assert shared["model"]["lora"] == {"r": 4, "lora_dropout": 0.2}
    assert trial.model(shared["model"]) == trial.config(shared)["model"]


def test_what_trains_more_than_adapters_is_trained_alone():
    shared = {"model.train_biases": "all"}
    arms = [Arm("none", {"model.train_biases": "none"}), FULL]
    plain, full, *_ = grid(shared, arms=arms, axes={}, seeds=1).trials()
    assert (plain.alone, full.alone) == (False, True)
    assert full.options["model.train_biases"] == "none"
    assert all(trial.alone for trial in grid(shared).trials())


@pytest.mark.parametrize("given", [{"data.validation_share": 0.1}, {"data.folds": 2}, {"early_stopping_patience": 3}])
def test_what_validates_or_ends_by_itself_is_trained_alone(given):
    assert all(trial.alone for trial in grid(given).trials())


def test_a_task_brings_its_folder_and_its_own_options():
    of_task = {"rte": {RATE: 5e-4, "trainer.max_epochs": 80}}
    found = grid(axes={"data.task": ["rte", "stsb"]}, of_task=lambda task: of_task.get(task, {}), seeds=1).trials()
    assert [trial.options["data.source"] for trial in found] == ["glue/RTE", "glue/STS-B"]
    assert [trial.options.get("trainer.max_epochs") for trial in found] == [80, None]
    over = grid(
        arms=[Arm("other", {RATE: 1.0})],
        axes={"data.task": ["rte"]},
        of_task=lambda task: of_task.get(task, {}),
        seeds=1,
    ).trials()
    assert over[0].options[RATE] == 1.0


def test_names_are_short_and_tell_trials_apart():
    names = [trial.name for trial in grid(axes={"model.encoder": ["/a" * 200, "/a" * 201]}, seeds=1).trials()]
    assert len(set(names)) == 2
    assert all(len(name) < LONGEST + 20 and "/" not in name for name in names)
    assert told(["query", 0.001]) == "query,0.001"


@pytest.mark.parametrize("precision", ["16-mixed", "16", 16])
def test_what_shares_a_scale_of_the_loss_is_trained_alone(precision):
    given = {"trainer.precision": precision}
    assert all(trial.alone for trial in grid(given).trials())
    varied = grid({"trainer.precision": "bf16-mixed"}, axes={"trainer.precision": ["32-true", precision]}).trials()
    assert [trial.alone for trial in varied[:2]] == [False, True]


def test_an_axis_of_lora_that_varies_another_method_is_named():
    with pytest.raises(UserError, match=r"two like .*head.*: model\.lora\.r can't vary method head.*--head_rate"):
        grid(axes={"model.method": ["lora", "head"], RANK: [1, 2]}).trials()
    assert len(grid(axes={"model.method": ["lora", "head"], RANK: [2]}, seeds=1).trials()) == 2


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seeds": 0}, "seeds"),
        ({"arms": []}, "vary"),
        ({"axes": {RANK: [2, 2]}}, "vary"),
        ({"axes": {RATE: [1e-3, 0.001]}}, "vary"),
        ({"arms": [Arm("a"), Arm("b", {RANK: 4})], "axes": {RANK: [4]}}, "vary"),
        ({"arms": [Arm("a"), Arm("a", {RATE: 1.0})]}, "vary"),
        ({"axes": {"model.monitor": [None, "loss"]}}, "vary"),
    ],
)
def test_grids_that_make_no_sense(changes, key):
    with pytest.raises(UserError, match=f"^{key}: "):
        grid(**changes).trials()
