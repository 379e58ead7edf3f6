"""What tests share: tiny real encoders, the developers' material, and a trained checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"
WORDS = [
    "a",
    "the",
    "film",
    "is",
    "was",
    "not",
    "good",
    "bad",
    "fine",
    "awful",
    "great",
    "dull",
    "bright",
    "slow",
    "plot",
    "cast",
    "and",
    "but",
    "very",
    "never",
    "ever",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skip(reason=f"the developers' material is not at {SHARED}")
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(missing)


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the checkout, reads the user's cache or sees another test's seed."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)


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


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory):
    """The folder of a tiny encoder with random weights, by model type: `tiny_encoder("bert")`."""
    from transformers import AutoModel

    made: dict[str, str] = {}

    def make(kind: str = "roberta") -> str:
        if kind not in made:
            torch.manual_seed(1)
            folder = tmp_path_factory.mktemp(kind)
            AutoModel.from_config(tiny_config(kind)).save_pretrained(folder)
            tiny_tokenizer(kind).save_pretrained(folder)
            made[kind] = str(folder)
        return made[kind]

    return make


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny task in the layout of GLUE's SST-2: praise words are positive."""
    folder = tmp_path_factory.mktemp("SST-2")
    praise, blame = ["good", "fine", "great", "bright"], ["bad", "awful", "dull", "slow"]
    rows = [f"the {noun} is {very}{word}\t{int(word in praise)}"
            for noun in ("film", "plot", "cast") for very in ("", "very ") for word in praise + blame]  # fmt: skip
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tiny_encoder, glue_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.ckpt of a tiny run by the command, in a process of its own."""
    cwd = tmp_path_factory.mktemp("run")
    arguments = ["--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--data.batch_size", "8"]
    arguments += ["--model.learning_rate", "3e-2", "--model.head_learning_rate", "1e-1", "--run_name", "tiny"]
    run_cli(["fit", *arguments, "--trainer.max_epochs", "4"], cwd, check=True)
    return cwd / "checkpoints" / "tiny" / "best.ckpt"


def run_cli(
    arguments: list[str], cwd: Path, check: bool = False, text_input: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m lora_pl ARGUMENTS` in a fresh process."""
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
