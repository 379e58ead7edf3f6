"""`--help`: a page of what people use, and by `--help all` every option that the verb uses."""

import re

import pytest

from lora_pl.cli.first_page import OPTIONS, PAGES
from lora_pl.cli.main import main

FIRST = re.compile(r"^  --([\w.]+) +(.*?)(?: \[([^]]*)\])?$", re.MULTILINE)
ENTRY = re.compile(r"^  --([\w.]+)(?: \{.*?\}| NAME=CHECKPOINT)?(?: \[([^]]*)\])?$", re.MULTILINE)
UNTRUE = ('"best"', '"last"', "hpc", "registry", "32-true'", "1000", "Disabled by default", ":paramref:", ":class:",
          "``", "forward function", "full optimization routine", "known subclasses", "__main__")  # fmt: skip


@pytest.fixture
def printed(capsys):
    def of(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    return of


@pytest.mark.parametrize("verb", PAGES)
def test_the_first_page_is_a_page_and_says_what_is_so(verb, printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    page, every = printed(verb, "--help"), printed(verb, "--help", "all")
    lines = page.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100
    assert page.count(f"\n  lora_pl {verb} ") + page.count(f"| lora_pl {verb} ") == 3
    stored = "the checkpoint's"
    defaults = {option: default if default != stored else "" for option, default in ENTRY.findall(every)}
    shown = {option: default for option, _, default in FIRST.findall(page)}
    assert len(shown) >= 12
    assert shown == {option: defaults[option] for option in shown}
    assert not [untrue for untrue in UNTRUE if untrue in every.replace("model_registry", "")]


def test_no_line_of_the_first_pages_is_left_over():
    assert {*OPTIONS} == {option for page in PAGES.values() for group in page.groups.values() for option in group}


@pytest.mark.parametrize(
    ("verb", "used", "unused"),
    [
        ("validate", "trainer.limit_val_batches", "trainer.max_epochs"),
        ("test", "data.validation_file", "model.learning_rate"),
        ("predict", "keep_columns", "trainer.callbacks"),
        ("ablate", "vary", "run_name"),
    ],
)
def test_a_verb_lists_what_it_uses(verb, used, unused, printed):
    listed = dict(ENTRY.findall(printed(verb, "--help", "all")))
    assert used in listed
    assert unused not in listed


def test_the_trainer_comes_last_and_a_class_explains_itself(printed):
    options = [option for option, _ in ENTRY.findall(printed("fit", "--help", "all"))]
    prefixes = list(dict.fromkeys(option.rpartition(".")[0] for option in options))
    assert prefixes == ["", "model", "model.lora", "data", "trainer"]
    assert "--trainer.callbacks.patience [3]" in printed("fit", "--trainer.callbacks.help", "EarlyStopping")


def test_an_adapters_options_are_those_of_its_own_parser(printed):
    assert "--adapter_column" in printed("predict", "--adapter", "a=b", "--help")
