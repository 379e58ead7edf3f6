"""What tests share: tolerances from arithmetic, tiny real models, the command line in this process or a fresh one."""

import contextlib
import copy
import functools
import io
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import docstring_parser
import numpy
import torch

from lora_pl.encoder.source import local_path

WORDS = ["a", "the", "film", "is", "was", "not", "good", "bad", "fine", "awful", "great", "dull", "bright", "slow",
         "plot", "cast", "and", "but", "very", "never", "ever"]  # fmt: skip

TIMES = ("seconds", "sentences_per_second")
"""The columns of a study's table that differ from run to run."""

TINY_TERMS = 256
"""The lengths of the sums that follow one another from a tiny encoder's embeddings to its logits, added up."""


def rounding(terms: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> float:
    """How far two correct sums of `terms` summands may lie apart: 8 sqrt(terms) eps(dtype) scale.

    `scale` is the magnitude of the partial sums. Every addition errs by at most eps / 2 of one, in either direction:
    a random walk of `terms` steps, and more than 8 of its standard deviations. Sums that follow one another count by
    the sum of their lengths. Products in half precision are summed in fp32: count the times a result is rounded.
    """
    return 8 * terms**0.5 * torch.finfo(dtype).eps * scale


def assert_equal_to_rounding(
    actual: torch.Tensor, expected: torch.Tensor, terms: int, dtype: torch.dtype | None = None
) -> None:
    """Equal but for the order of `terms` additions, of a magnitude of at least 1 and of the largest of `expected`."""
    scale = max(1.0, expected.abs().max().item())
    close = rounding(terms, dtype or expected.dtype, scale)
    torch.testing.assert_close(actual, expected, rtol=0, atol=close, check_dtype=False)


OF_KIND: dict[str, dict[str, object]] = {
    "electra": {"embedding_size": 16},
    "modernbert": {
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "classifier_pooling": "mean",
        "cls_token_id": 0,
        "sep_token_id": 2,
    },
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "type_vocab_size": 0,
    },
    "xmod": {"default_language": "en_XX"},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 16},
    "eurobert": {"num_key_value_heads": 2, "mask_token_id": 3},
}
UNTYPED = ("roberta", "xlm-roberta", "modernbert", "mpnet", "deberta-v2")


def tiny_config(kind: str, **changes: object):
    from transformers import AutoConfig, DistilBertConfig

    size = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 1}
    size |= {"bos_token_id": 0, "eos_token_id": 2}
    if kind == "distilbert":
        return DistilBertConfig(
            vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40, pad_token_id=1
        )
    types = {} if kind in UNTYPED else {"type_vocab_size": 2}
    return AutoConfig.for_model(kind, **{**size, **types, **OF_KIND.get(kind, {}), **changes})


def random_encoder(folder: str):
    """An encoder of a folder's shape, its weights drawn once: Transformers' own initialization takes seconds."""
    from transformers.initialization import no_init_weights

    from lora_pl.encoder.loading import build_encoder, load_config

    with no_init_weights():
        encoder = build_encoder(load_config(folder))
    for parameter in encoder.parameters():
        parameter.data.uniform_(-0.05, 0.05)
    return encoder.train()


def tiny_tokenizer(kind: str):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    typed = kind in ("bert", "electra")
    pair = "<s> $A </s> $B:1 </s>:1" if typed else "<s> $A </s> </s> $B </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", model_max_length=38,
        model_input_names=["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"],
    )  # fmt: skip


def parse_docstrings_once() -> None:
    """For every command jsonargparse reads the sources of Lightning's classes anew: most of what a parser costs."""
    docstring_parser.parse_from_object = functools.cache(docstring_parser.parse_from_object)


def read_once(read: Callable) -> Callable:
    """`read(encoder, ...)` from a small folder, which is read again only if a file in it has changed; gives copies."""
    known: dict = {}

    @functools.wraps(read)
    def remembered(name, *parts, **options):
        if not (files := _small_files(name)):
            return read(name, *parts, **options)
        state = torch.get_default_dtype(), torch.get_default_device(), torch.is_inference_mode_enabled()
        key = (str(name), files, *options.items(), state)
        if key not in known:
            known[key] = read(name, *parts, **options)
        return copy.deepcopy(known[key])

    return remembered


def _small_files(encoder: str) -> tuple:
    """What tells one state of an encoder's folder from another; nothing if it is large or no folder."""
    try:
        folder = Path(local_path(encoder))
        stats = {entry.path: entry.stat() for entry in os.scandir(folder.resolve())}
    except (OSError, ValueError):
        return ()
    if sum(stat.st_size for stat in stats.values()) > 2**26:
        return ()
    return tuple((path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in sorted(stats.items()))


def write_glue_split(path: Path, task) -> None:
    """Eight rows in the layout of the task's download."""
    columns = task.header or (*task.file_columns, task.label_column)
    labels = [str(index) for index in range(len(task.labels))] or ["0.5", "4.2"]
    lines = [] if task.header else ["\t".join(columns)]
    for number, label in enumerate(islice(cycle(labels), 8)):
        cells = {column: f"{WORDS[number]} {column[-1]}" for column in columns} | {task.label_column: label}
        lines.append("\t".join(cells[column] for column in columns))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextlib.contextmanager
def process_state() -> Iterator[None]:
    """Restores what a command leaves in its process: environment, folder, signals, warnings, log levels, seeds."""
    environment, folder = dict(os.environ), os.getcwd()
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    levels = [(logger, logger.level, logger.disabled) for logger in _loggers()]
    draws = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    threads, dtype, hook = torch.get_num_threads(), torch.get_default_dtype(), sys.excepthook
    deterministic, precision = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        for name, handler in handlers.items():
            signal.signal(name, handler or signal.SIG_DFL)
        for logger, level, disabled in levels:
            if logger.level != level:  # setting one clears the caches of all
                logger.setLevel(level)
            logger.disabled = disabled
        random.setstate(draws[0])
        numpy.random.set_state(draws[1])
        torch.set_rng_state(draws[2])
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_float32_matmul_precision(precision)
        sys.excepthook = hook


def _loggers() -> list[logging.Logger]:
    known = logging.Logger.manager.loggerDict.values()
    return [logging.getLogger(), *(logger for logger in known if isinstance(logger, logging.Logger))]


@contextlib.contextmanager
def _streams(text_input: str) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Standard input holds `text_input`; what goes to standard output and error, by a logger too, is kept."""
    out, err = io.BytesIO(), io.BytesIO()
    kept = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = io.TextIOWrapper(io.BytesIO(text_input.encode()), encoding="utf-8")
    sys.stdout, sys.stderr = (io.TextIOWrapper(each, encoding="utf-8", write_through=True) for each in (out, err))
    logged = [(handler, handler.stream) for logger in _loggers() for handler in logger.handlers
              if type(handler) is logging.StreamHandler]  # fmt: skip
    for handler, _ in logged:
        handler.stream = sys.stderr
    try:
        yield out, err
    finally:
        for handler, stream in logged:
            handler.stream = stream
        sys.stdin, sys.stdout, sys.stderr = kept


def run_in_process(
    arguments: list[str], cwd: Path, check: bool = False, text_input: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`lora_pl ARGUMENTS` in this process: what `run_cli` gives, without the seconds of its imports."""
    import lightning.pytorch  # noqa: F401  its loggers keep the standard error of their import

    from lora_pl.cli.main import main

    with process_state(), _streams(text_input or "") as (out, err):
        os.chdir(cwd)
        os.environ["COLUMNS"] = "100"
        code = main(list(arguments))
        done = subprocess.CompletedProcess(
            ["lora_pl", *arguments], code, out.getvalue().decode(), err.getvalue().decode()
        )
    assert not check or code == 0, done.stderr
    return done


def run_cli(
    arguments: list[str], cwd: Path, check: bool = False, text_input: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m lora_pl ARGUMENTS` in a fresh process: seconds of imports, for what only a process shows."""
    done = subprocess.run(
        [sys.executable, "-m", "lora_pl", *arguments], cwd=cwd, capture_output=True, text=True, input=text_input,
        env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return done


def run_script(script: str, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """A Python script in a fresh process; from a file, so that Lightning can start it again for each device."""
    path = cwd / "script.py"
    path.write_text(script, encoding="utf-8")
    return subprocess.run([sys.executable, str(path), *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)
