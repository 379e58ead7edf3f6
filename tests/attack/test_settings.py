"""Files name settings, encoders and patterns: a result or one line, no code run, no other function measured."""

import inspect
import io
import json
import shutil
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lora_pl import LoRAClassifier, LoRAConfig, SentenceDataModule
from lora_pl.cli.main import main
from lora_pl.cli.shared_options import checkpoint_defaults
from lora_pl.encoder.loading import load_config
from lora_pl.encoder.source import local_path, require_own_package
from lora_pl.errors import UserError
from lora_pl.formats.importing import ImportOptions, checkpoint_of, load_external
from lora_pl.lora import LoRAError
from lora_pl.lora.names import matching, require_patterns
from lora_pl.model.many_adapters import ManyAdapters
from lora_pl.model.stored import read_model
from lora_pl.storage.settings import EQUAL, FREE, SAID
from tests.cli.mistakes import fails

BEFORE = Path(__file__).resolve().parents[1] / "fixtures" / "before"
ENCODER, CHECKPOINT = str(BEFORE / "encoder"), BEFORE / "lora" / "last.ckpt"
FEW, MANY = 10, 1000
counts = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.attack)])

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(4.7)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
HOSTILE = JSON | st.sampled_from(
    ["(([a-z.0-9_]+)+)+!", ["(a|b|.)*(?R)?!"], {"(.*)*!": 3}, "package://os/x", "../" * 9, "\x1b]0;x\a",
     10**18, "\0", "~x/y"]
)  # fmt: skip
TENSORS = st.sampled_from(
    [torch.zeros(()), torch.full((2, 16), torch.nan), torch.zeros(3, dtype=torch.int8), b"x", (1,)]
)


def told(call, *arguments, **options) -> str | None:
    """The key of the call's error, which is one printable line; None for a result."""
    try:
        call(*arguments, **options)
    except (UserError, LoRAError) as error:
        said, key = str(error), error.key
    else:
        return None
    assert len(said.splitlines()) == 1
    assert len(said) < 3000
    return key


def places(value, path=()):
    """The path of every value in nested dicts."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from places(item, (*path, key))


def changed(value, path, new):
    return {**value, path[0]: changed(value.get(path[0]), path[1:], new)} if path else new


def hypothetically(count, strategy, check) -> None:
    @settings(max_examples=count, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(strategy)
    def run(drawn) -> None:
        check(*drawn)

    run()


@counts
@pytest.mark.parametrize("part", ["hyper_parameters", "datamodule_hyper_parameters", "all"])
def test_any_value_of_a_checkpoint(part, count, tmp_path):
    stored = torch.load(CHECKPOINT, weights_only=True)
    found = [path for path in places(stored) if part in ("all", path[0])]
    later = [("hyper_parameters", "lora", field.name) for field in fields(LoRAConfig)]
    found += [path for path in later if part in ("all", path[0]) and path not in found]

    def check(path, value) -> None:
        torch.save(changed(stored, path, value), tmp_path / "x.ckpt")
        told(LoRAClassifier.load_from_checkpoint, tmp_path / "x.ckpt", encoder=ENCODER)
        told(read_model, tmp_path / "x.ckpt")

    hypothetically(count, st.tuples(st.sampled_from(found), HOSTILE | TENSORS), check)


@counts
@pytest.mark.parametrize(("folder", "file"), [
    ("adapter", "lora_pl.json"), ("peft", "lora_pl.json"), ("peft", "adapter_config.json")
])  # fmt: skip
def test_any_value_of_an_adapters_json(folder, file, count, tmp_path):
    shutil.copytree(BEFORE / folder, tmp_path / "x")
    if file == "adapter_config.json":
        (tmp_path / "x" / "lora_pl.json").unlink()
    stored = json.loads((tmp_path / "x" / file).read_text())
    options = ImportOptions(encoder=ENCODER)

    def check(path, value) -> None:
        (tmp_path / "x" / file).write_text(json.dumps(changed(stored, path, value)))
        told(load_external, tmp_path / "x", options)

    hypothetically(count, st.tuples(st.sampled_from(list(places(stored))), HOSTILE), check)


@counts
def test_any_value_of_an_encoders_configuration(count, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    shutil.copytree(ENCODER, tmp_path / "x")
    files = ("config.json", "tokenizer_config.json")
    stored = {file: json.loads((tmp_path / "x" / file).read_text()) for file in files}
    extra = (
        *("auto_map", "attn_implementation", "quantization_config", "tokenizer_class", "chat_template", "model_type"),
        *("per_layer_config", "id2label", "added_tokens_decoder", "model_max_length", "transformers_weights"),
    )
    names = [(file, name) for file in files for name in (*stored[file], *extra)]

    def check(place, value) -> None:
        file, name = place
        for each in files:
            (tmp_path / "x" / each).write_text(json.dumps({**stored[each], **({name: value} if each == file else {})}))
        told(lambda: LoRAClassifier(encoder=str(tmp_path / "x"), head="architecture").predict(["a film"]))

    hypothetically(count, st.tuples(st.sampled_from(names), HOSTILE), check)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("lora", "r"), 4.7), (("lora", "r"), True), (("lora", "r"), "4"), (("lora", "r"), 0), (("lora",), 3),
        (("lora", "lora_alpha"), float("nan")), (("lora", "lora_alpha"), True), (("lora", "target_modules"), [1]),
        (("lora", "rank_pattern"), {"query": 2.0}), (("lora", "rank_pattern"), [1]), (("lora", "variant"), []),
        (("lora", "layers"), ["0-999"] * 10**5), (("lora", "layers"), {}), (("lora", "layers"), [[0]]),
        (("lora", "layers"), "\x1b[2J"), (("lora", "exclude"), {"a": 1}), (("lora", "exclude"), ["(a"]),
        (("lora", "scaling"), []), (("lora", "lr_ratio"), 0), (("lora", "lr_ratio"), "4"), (("lora", "lr_ratio"), {}),
        (("label_names",), ["a", 1]), (("label_names",), "ab"), (("max_length",), 64.0),
        (("max_length",), 10**20),
        (("learning_rate",), float("inf")), (("learning_rate",), "1e-3"), (("pairs",), 0), (("encoder",), 3),
        (("encoder",), b"x"), (("method",), "lara"), (("head",), None), (("base_dtype",), "float8"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_one_line(path, value, made, tmp_path):
    stored = torch.load(made, weights_only=True)
    torch.save(changed(stored, ("hyper_parameters", *path), value), tmp_path / "x.ckpt")
    for load in (read_model, LoRAClassifier.load_from_checkpoint, lambda file: ManyAdapters({"a": file})):
        assert told(load, tmp_path / "x.ckpt") in ("checkpoint.settings", "checkpoint.refused")


@pytest.mark.parametrize(
    ("path", "value"),
    [(("state_dict",), {"x": 3}), (("state_dict", "head.bias"), torch.full((2,), torch.inf)), (("epoch",), "3"),
     (("global_step",), None), (("lora_pl_base", "weights"), 3), (("optimizer_states",), {}), (("loops",), [])],
)  # fmt: skip
def test_other_parts_of_a_checkpoint(path, value, tmp_path):
    stored = torch.load(CHECKPOINT, weights_only=True)
    torch.save(changed(stored, path, value), tmp_path / "x.ckpt")
    assert told(read_model, tmp_path / "x.ckpt") in ("checkpoint.format", "checkpoint.damaged")


@pytest.mark.parametrize(
    "changes", [{"lora": {"r": 4.7}}, {"lora": {"lora_alpha": "x"}}, {"learning_rate": "1"}, {"max_length": True},
                {"label_names": [1, 2]}, {"dropout": []}, {"max_length": 0}],
)  # fmt: skip
def test_in_python_too(changes):
    assert told(LoRAClassifier, encoder=ENCODER, **changes) is not None
    assert told(SentenceDataModule, batch_size=4.7) == "data"


@pytest.mark.parametrize("count", [2, pytest.param(60, marks=pytest.mark.attack)])
def test_any_value_of_a_resumed_run(count, glue_folder, tmp_path):
    """A run or one line: counters, random states, sums, optimizer, schedule."""
    stored = torch.load(CHECKPOINT, weights_only=True)
    parts = ("loops", "lora_pl_resume", "optimizer_states", "lr_schedulers", "callbacks", "epoch", "global_step")
    found = [path for path in places(stored) if path[0] in parts]
    arguments = ["--model.encoder", ENCODER, "--data.source", str(glue_folder), "--trainer.max_epochs", "5",
                 "--config", str(BEFORE / "lora" / "config.yaml"), "--force"]  # fmt: skip

    def check(path, value) -> None:
        folder = Path("checkpoints/lora")
        shutil.rmtree("checkpoints", ignore_errors=True)
        folder.mkdir(parents=True)
        torch.save(changed(stored, path, value), folder / "last.ckpt")
        assert main(["fit", "--run_name", "lora", "--resume", *arguments]) in (0, 1)

    hypothetically(count, st.tuples(st.sampled_from(found), PLAIN | TENSORS), check)


def test_every_setting_is_of_one_kind():
    names = [name for name in inspect.signature(LoRAClassifier).parameters if name != "lora"]
    names += [f"lora.{field.name}" for field in fields(LoRAConfig)]
    assert sorted(names) == sorted((*EQUAL, *SAID, *FREE))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A checkpoint of this version."""
    path = tmp_path_factory.mktemp("made") / "best.ckpt"
    torch.save(checkpoint_of(LoRAClassifier(encoder=ENCODER, lora=LoRAConfig(r=2), max_length=20)), path)
    return path


OTHER = {
    "task": "cola", "label_names": ["b", "a"], "pairs": True, "method": "head", "head": "architecture",
    "lora.r": 3, "lora.lora_alpha": 32.0, "lora.target_modules": ["query"], "lora.rank_pattern": {"query": 1},
    "lora.alpha_pattern": {"query": 2.0}, "lora.variant": "dora", "lora.layers": [0], "lora.exclude": ["value"],
    "lora.scaling": "rslora", "train_biases": "lora", "train_norms": True,
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
def test_what_changes_the_function_is_refused(name, made, capsys):
    own = {"lora": LoRAConfig(r=2).to_dict()}
    given = {name: OTHER[name]} if "." not in name else {"lora": {**own["lora"], name[5:]: OTHER[name]}}
    assert told(LoRAClassifier.load_from_checkpoint, made, **given) == "checkpoint.settings"
    if name not in ("task", "label_names", "pairs"):
        value = json.dumps(OTHER[name]) if not isinstance(OTHER[name], str) else OTHER[name]
        flags = ["--data.source", "sample", f"--model.{name}", value]
        assert fails(capsys, "predict", "--ckpt_path", str(made), *flags) == "checkpoint.settings"


def test_what_may_differ_is_said_or_free(made, capsys):
    LoRAClassifier.load_from_checkpoint(made, max_length=10)
    assert "max_length = 10, trained with 20" in capsys.readouterr().err
    free = {"learning_rate": 1.0, "dropout": 0.5, "base_dtype": "float32", "lora": LoRAConfig(r=2, lora_dropout=0.5)}
    LoRAClassifier.load_from_checkpoint(made, **free)
    assert not capsys.readouterr().err


def test_a_file_says_nothing_of_this_machine(made):
    data = {"source": "sample", "num_workers": 99, "cache_dir": "/x", "eval_batch_tokens": 10**9, "batch_size": 9}
    stored = {**read_model(made), "datamodule_hyper_parameters": data}
    known = [f"data.{name}" for name in inspect.signature(SentenceDataModule).parameters]
    found = checkpoint_defaults(stored, ["validate"], known)
    assert {name for name in found if name.removeprefix("data.") in data} == {"data.source"}
    fit = checkpoint_defaults(stored, ["fit"], known)
    assert not {"data.num_workers", "data.cache_dir"} & fit.keys()


CATASTROPHIC = [
    r"(([a-z.0-9_]+)+)+!", r"(.*)*(.*)*(.*)*!", r"(a|a)*b", r"(.|..|...)*!", r"(?:a{60000}){60000}", r"(?R)", r"(.+)\1",
    r"((((.?){99}){99}){99}){99}", r".{99}" * 40, r"(?=a)a", "x" * 300, "[", "a)|(b", r"\Qa",
]  # fmt: skip


@pytest.mark.parametrize("pattern", CATASTROPHIC)
def test_patterns_cannot_hang(pattern):
    names = [f"encoder.layer.{number}.attention.self.query" * 3 for number in range(300)]
    started = time.process_time()
    for field in ("target_modules", "rank_pattern"):
        if told(require_patterns, field, [pattern]) is None:
            assert pattern == "x" * 300 or not matching(names, pattern)
    assert time.process_time() - started < 1


@counts
def test_no_pattern_hangs(count):
    names = [f"encoder.layer.{number}.attention.self.query" for number in range(300)]
    pieces = st.sampled_from(
        [".", "*", "+", "?", "(", ")", "|", "[a-z]", "{9}", "{0,99}", "(?:", "a", r"\.", r"\pL", "^", "$"]
    )

    def check(drawn) -> None:
        started = time.process_time()
        pattern = "".join(drawn)
        if told(require_patterns, "target_modules", [pattern]) is None:
            matching(names, pattern)
        assert time.process_time() - started < 1.5

    hypothetically(count, st.tuples(st.lists(pieces, max_size=60)), check)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [(r".*\.(query|value)", True), (r"^encoder\.layer\.\d{1,2}\.attention\.self\.query$", True),
     (r"encoder.*key", False),
     (r".*attention.*(q|k)uery", True), (r"(?i).*QUERY", True), (r"layer\.0.*", False), ("self.query", True)],
)  # fmt: skip
def test_typical_patterns_match_as_they_did(pattern, expected):
    assert bool(matching(["encoder.layer.0.attention.self.query"], pattern)) == expected


@pytest.fixture
def harmful(tmp_path, monkeypatch) -> Path:
    """A package on the path that notes that it was imported."""
    folder = tmp_path / "harmful_package"
    (folder / "sub").mkdir(parents=True)
    for place in (folder, folder / "sub"):
        (place / "__init__.py").write_text("import pathlib; pathlib.Path('harmed').touch()")
    shutil.copytree(ENCODER, folder / "encoder")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_packages_are_located_not_imported(harmful, tmp_path):
    assert local_path("package://harmful_package/encoder") == str(harmful / "encoder")
    for name in (
        "harmful_package.sub/encoder",
        "harmful_package/../x",
        "harmful_package//etc",
        "__main__/x",
        "os/x",
        "/x",
    ):
        assert told(local_path, f"package://{name}") == "model.encoder"
    assert "harmful_package" not in sys.modules
    assert not Path("harmed").exists()


def test_a_file_names_no_other_package(harmful, made, tmp_path, capsys):
    name = "package://harmful_package/encoder"
    assert told(require_own_package, name) == "model.encoder"
    torch.save(changed(torch.load(made), ("hyper_parameters", "encoder"), name), tmp_path / "x.ckpt")
    load = LoRAClassifier.load_from_checkpoint
    assert told(load, tmp_path / "x.ckpt") == told(ManyAdapters, {"a": tmp_path / "x.ckpt"}) == "model.encoder"
    assert fails(capsys, "predict", "--ckpt_path", str(tmp_path / "x.ckpt")) == "model.encoder"
    assert told(load, tmp_path / "x.ckpt", encoder=name) is None
    shutil.copytree(BEFORE / "peft", tmp_path / "peft")
    (tmp_path / "peft" / "lora_pl.json").unlink()
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))
    assert told(load_external, tmp_path / "peft") == "model.encoder"
    assert not Path("harmed").exists()


class Asked(io.StringIO):
    def readline(self, *_):
        raise AssertionError("standard input was read")

    read = readline


HARM = "import pathlib\npathlib.Path('harmed').touch()\n"


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"model_type": "x", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}),
        ("config.json", {"auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}),
        ("config.json", {"attn_implementation": "owner/kernel"}),
        ("config.json", {"attn_implementation": "flash_attention_2"}),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}),
        ("config.json", {"num_hidden_layers": 10**9}),
        ("config.json", {"hidden_size": 10**9}),
        ("config.json", {"transformers_weights": "../../x.safetensors"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.T", "code.T"]}, "tokenizer_class": "T"}),
        ("tokenizer_config.json", {"tokenizer_class": "code.T"}),
        ("tokenizer_config.json", {"chat_template": "{{ ''.__class__.__mro__ }}"}),
        ("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "x", "target_modules": "((a+)+)+!"}),
        ("model.safetensors.index.json", {"weight_map": {"x": "../../../etc/passwd"}}),
    ],
)  # fmt: skip
def test_an_encoder_folder_is_data(file, changes, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Asked("y\n"))
    folder = tmp_path / "encoder"
    shutil.copytree(ENCODER, folder)
    if "index" in file:
        (folder / "model.safetensors").unlink()
    (folder / "code.py").write_text(HARM)
    path = folder / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **changes}))
    told(lambda: LoRAClassifier(encoder=str(folder)).predict(["a film"]))
    assert not Path("harmed").exists()
    if "attn_implementation" in changes:
        assert load_config(str(folder))._attn_implementation is None


class Harm:
    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('harmed').touch()",)


def test_pickled_weights_run_no_code(tmp_path):
    shutil.copytree(ENCODER, tmp_path / "x")
    (tmp_path / "x" / "model.safetensors").unlink()
    for content in (Harm(), bytearray(8)):
        torch.save({"embeddings.word_embeddings.weight": content}, tmp_path / "x" / "pytorch_model.bin")
        assert told(LoRAClassifier, encoder=str(tmp_path / "x")) == "encoder.refused"
    torch.save(load_file(Path(ENCODER) / "model.safetensors"), tmp_path / "x" / "pytorch_model.bin")
    assert told(LoRAClassifier, encoder=str(tmp_path / "x")) is None
    assert not Path("harmed").exists()


def deep(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def test_deep_json_is_one_line(tmp_path):
    shutil.copytree(ENCODER, tmp_path / "x")
    deep(tmp_path / "x")
    assert told(LoRAClassifier, encoder=str(tmp_path / "x")) == "model.encoder"
    for folder, file in (("adapter", "lora_pl.json"), ("peft", "adapter_config.json")):
        shutil.copytree(BEFORE / folder, tmp_path / folder)
        (tmp_path / folder / file).write_text("[" * 100_000)
        assert told(load_external, tmp_path / folder, ImportOptions(encoder=ENCODER)) == "adapter.damaged"


def of_tokenizer(**changes):
    def change(folder: Path) -> None:
        definition = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps({**definition, **changes}))

    return change


def of_file(file: str, **changes):
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **changes}))

    return change


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (of_file("config.json", num_attention_heads=4), "checkpoint.base"),
        (of_file("config.json", hidden_act="relu"), "checkpoint.base"),
        (of_file("config.json", layer_norm_eps=1e-3), "checkpoint.base"),
        (of_file("config.json", pad_token_id=2), "checkpoint.base"),
        (of_file("tokenizer_config.json", truncation_side="left"), "checkpoint.base"),
        (of_file("tokenizer_config.json", model_input_names=["input_ids", "token_type_ids"]), "checkpoint.base"),
        (of_tokenizer(normalizer={"type": "Lowercase"}), "checkpoint.base"),
        (of_tokenizer(post_processor=None), "checkpoint.base"),
        (of_tokenizer(pre_tokenizer={"type": "WhitespaceSplit"}), "checkpoint.base"),
        (of_file("config.json", hidden_dropout_prob=0.5, classifier_dropout=0.3, use_cache=False), None),
        (of_file("config.json", transformers_version="4.0", architectures=["X"], id2label={"0": "x"}), None),
        (of_file("tokenizer_config.json", model_max_length=9), None),
    ],
)  # fmt: skip
def test_the_fingerprint_covers_what_changes_the_function(change, key, made, tmp_path):
    shutil.copytree(ENCODER, tmp_path / "x")
    change(tmp_path / "x")
    assert told(LoRAClassifier.load_from_checkpoint, made, encoder=str(tmp_path / "x"), dropout=0.3) == key


@pytest.mark.parametrize("content", ["[1]", "3", "{", "[" * 100_000, ""])
def test_a_damaged_record_of_a_study(content, tmp_path):
    from lora_pl.ablation.study import check_study, stored_settings

    (tmp_path / "settings.json").write_text(content)
    assert told(stored_settings, tmp_path) == told(check_study, tmp_path, {"data.task": "sst2"}) == "output"
