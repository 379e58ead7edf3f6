import dataclasses
import pickle
import re

import pytest

from lora_pl.lora import LoRAConfig, LoRAError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0), ("r", -1), ("r", 1.5), ("r", True),
        ("lora_alpha", 0), ("lora_alpha", float("inf")), ("lora_alpha", float("nan")),
        ("lora_dropout", 1.0), ("lora_dropout", -0.1),
        ("init", "zeros"), ("scaling", "rs"), ("scaling", None),
        ("lr_ratio", 0), ("lr_ratio", -1.0), ("lr_ratio", float("inf")), ("lr_ratio", float("nan")), ("lr_ratio", True),
        ("lr_ratio", None), ("variant", "lara"), ("target_modules", ()), ("target_modules", ("query[",)),
        ("exclude", ("query[",)), ("exclude", None), ("layers", -1), ("layers", "x"), ("layers", "11-6"),
        ("layers", ["1-2-3"]), ("layers", [1.0]), ("layers", True), ("layers", None), ("layers", "0-9999"),
        ("layers", ["0-999"] * 1001),
        ("layers", [10**9]), ("layers", "\u0663"), ("layers", {"0": 1}), ("layers", "6-11\n"),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(LoRAError) as error:
        LoRAConfig(**{field: value})
    assert error.value.key == field
    again = pickle.loads(pickle.dumps(error.value))  # as a worker process hands it over
    assert (type(again), again.key, str(again)) == (LoRAError, field, str(error.value))


def test_is_frozen_and_round_trips_through_primitive_values():
    config = LoRAConfig(r=2, lora_alpha=8, target_modules=["query", r".*\.dense"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.r = 3
    assert LoRAConfig.of(config.to_dict()) == config
    assert config.scale == 4
    assert dataclasses.replace(config, r=4, scaling="rslora").scale == 4
    assert LoRAConfig(target_modules="query").target_modules == ("query",)


@pytest.mark.parametrize(
    ("given", "numbers"),
    [((), ()), (3, (3,)), ("3", (3,)), ("2-4", (2, 3, 4)), ([0, "5-6", "5"], (0, 5, 6)), ([3, 0, 3], (0, 3))],
)
def test_blocks_are_numbers_and_ranges(given, numbers):
    config = LoRAConfig(layers=given, exclude="key")
    assert config.layers == numbers
    assert config.exclude == ("key",)
    assert LoRAConfig.of(config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "hint"), [("alpha", "did you mean lora_alpha?"), ("rank", "expected r, lora_alpha, ")]
)
def test_a_name_that_it_does_not_have_names_the_one_that_is_meant(name, hint):
    with pytest.raises(TypeError, match=re.escape(f"LoRAConfig has no {name}; {hint}")):
        LoRAConfig(**{name: 16})
