"""The pages tell the truth: their Python is run by a test, and the files that they name are there.

`test_commands.py` runs the commands of `lora_pl`. Other programs (pip, pytest, torchrun, the benchmarks) are not run:
that they know their options is checked here.
"""

import re
from configparser import ConfigParser

import pytest
from torch.distributed.run import get_args_parser

from tests.docs.pages import PAGES, ROOT, blocks, commands

NEEDS = {
    "the hub": r"roberta-base|configs/glue/|hub:|sst2_roberta_base(?!.* ENCODER)",
    "a GLUE download": "glue_data",
    "MINILM": "MINILM",
}
"""What a block's comment names if the block has such words in it."""
RUN = {"docs/python.md", "docs/extending.md", "docs/method.md", "README.md"}
"""Pages whose Python other tests run."""


def check(words: list[str], config: ConfigParser) -> None:
    """Raises where a program that no test runs would refuse its options."""
    program, *given = words
    if program == "torchrun":
        get_args_parser().parse_args(given)
    elif program == "python":
        (module,) = (word for word in given if word.startswith("benchmarks."))
        source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()
        assert not [word for word in given if word.startswith("--") and f'"{word}"' not in source]
    elif program == "pip":
        extras = re.findall(r"[\w,]+(?=\]$)", given[-1])
        assert {*",".join(extras).split(",")} <= {"", *config["options.extras_require"]}
    elif program == "pytest":
        marker = given[given.index("-m") + 1] if "-m" in given else ""
        assert f"{marker}:" in config["tool:pytest"]["markers"]
    else:
        assert program in ("lora_pl", "srun", "echo", "mkdocs", "tensorboard"), program


@pytest.mark.parametrize("page", PAGES)
def test_other_programs_know_their_options(page):
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    for words in commands(page):
        check(words, config)


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_a_block_says_what_it_needs(page):
    silent = [
        (need, block)
        for need, words in NEEDS.items()
        for block in blocks(page, "sh")
        if re.search(words, block, re.DOTALL) and not re.search(f"^#.*{need}", block, re.MULTILINE)
    ]
    assert not silent


@pytest.mark.parametrize("page", sorted({*PAGES} - RUN))
def test_python_is_run_or_says_what_it_needs(page):
    assert not [block for block in blocks(page, "python") if not block.startswith("# needs ")]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page):
    named = re.findall(r"`((?:lora_pl|tests|docs|benchmarks)/[\w/*.-]+\.\w+)`", PAGES[page])
    assert not [path for path in named if not [*ROOT.glob(path)]]


def test_the_home_page_begins_as_the_readme():
    assert blocks("docs/index.md", "sh")[0] == blocks("README.md", "sh")[0]
