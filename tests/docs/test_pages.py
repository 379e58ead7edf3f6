"""The pages tell the truth: their commands parse, their Python is run by a test, the files that they name are there.

No command is run.
"""

import re
from configparser import ConfigParser
from functools import cache

import pytest

from lora_pl.cli import export, import_adapter, params, predict_options
from lora_pl.cli.ablate import AblateCLI
from lora_pl.cli.parser import Parser
from lora_pl.cli.predict import adapters_parser
from lora_pl.cli.study_options import joined_vary
from lora_pl.cli.trainer import ClassifierCLI
from tests.docs.pages import PAGES, ROOT, blocks, commands

CLIS = {"fit": ClassifierCLI, "validate": ClassifierCLI, "test": ClassifierCLI}
MAKERS = {
    "export": export.make_parser,
    "import": import_adapter.make_parser,
    "params": params.make_parser,
    "predict": predict_options.make_parser,
}
STARTERS = ("torchrun", "srun", "python")
"""Programs that start others."""
NEEDS = {
    "the hub": r"roberta-base|configs/glue/|hub:|sst2_roberta_base(?!.* ENCODER)",
    "a GLUE download": "glue_data",
    "MINILM": "MINILM",
}
"""What a block's comment names if the block has such words in it."""
RUN = {"docs/python.md", "docs/extending.md", "docs/method.md", "README.md"}
"""Pages whose Python other tests run."""


class Made(Exception):
    """Holds the parser that a command line has made."""


@cache
def parser_of(verb: str) -> Parser:
    class Cli(AblateCLI if verb == "ablate" else CLIS[verb]):
        def parse_arguments(self, parser, args):
            raise Made(parser)

    try:
        Cli(["fit" if verb == "ablate" else verb])
    except Made as made:
        return made.args[0]
    raise AssertionError(verb)


def parse(verb: str, *given: str) -> None:
    """Raises where `lora_pl VERB` would refuse an option or its value."""
    if "--help" in given or given[:1] == ("report",):
        return
    values = ["configs/demo.yaml" if word == "..." else word for word in given if word != "FLAGS"]
    if "--adapter" in given:
        adapters_parser().parse_args(values)
    elif verb in MAKERS:
        MAKERS[verb]().parse_args(values)
    elif verb == "ablate":
        parser_of(verb).parse_args(joined_vary(["fit", *values]))
    else:
        parser_of(verb).parse_args([verb, *values])


def check(words: list[str], config: ConfigParser) -> None:
    """Raises where the program would refuse the command."""
    program, *given = words
    if "lora_pl" in words and program in (*STARTERS, "lora_pl"):
        parse(*words[words.index("lora_pl") + 1 :])
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
        assert program in ("echo", "mkdocs", "tensorboard"), program


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = ConfigParser(interpolation=None)
    config.read("setup.cfg")
    wrong = {}
    for words in commands(page):
        try:
            check(words, config)
        except Exception as error:
            wrong[" ".join(words)] = repr(error)
    assert not wrong


def test_there_are_commands_to_check():
    assert sum(len(commands(page)) for page in PAGES) > 40


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
