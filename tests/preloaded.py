"""What the server of `tests.processes` has done before it forks: imports, and what is computed once a process."""

import contextlib
import gc
import io
from importlib import import_module

from lora_pl.cli.main import main
from lora_pl.training.run_config import git_state
from tests.support import parse_docstrings_once, process_state

for name in ("tests.processes", "lora_pl.predictions.file", "transformers.models.roberta.modeling_roberta"):
    import_module(name)
parse_docstrings_once()
git_state()
with process_state(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    main(["fit", "--print_config"])
gc.collect()
gc.freeze()
