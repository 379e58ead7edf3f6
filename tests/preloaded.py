"""What the server of `tests.processes` has done before it forks: imports, and what is computed once a process."""

import contextlib
import functools
import gc
import io

import docstring_parser

import tests.processes  # noqa: F401
from lora_pl.cli.main import main
from lora_pl.training.run_config import git_state
from tests.support import process_state

docstring_parser.parse_from_object = functools.cache(docstring_parser.parse_from_object)
git_state()
with process_state(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    main(["fit", "--print_config"])
gc.collect()
gc.freeze()
