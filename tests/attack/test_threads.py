"""Threads that share a model get the answers of one thread, to the last bit."""

import asyncio
import copy
import pickle
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn

from lora_pl import LoRAClassifier, SentenceDataModule
from lora_pl.data.tokens import tokenize
from lora_pl.formats.importing import checkpoint_of
from lora_pl.lora import AdapterBank, LoRAConfig, LoRAError, disable_lora, lora_layers, merged_lora
from lora_pl.model import plain
from lora_pl.model.many_adapters import ManyAdapters
from tests.support import TINY_TERMS, WORDS, rounding, run_cli

THREADS = 8
calls = pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.attack)])


@pytest.fixture(autouse=True)
def _often_interrupted():
    """The interpreter switches threads a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(function, jobs: list) -> list:
    """The function's answers to the jobs, in `THREADS` threads that begin at once."""
    begun = threading.Barrier(THREADS)
    with ThreadPoolExecutor(THREADS, initializer=begun.wait) as pool:
        return list(pool.map(function, jobs))


def texts(draw: random.Random, most: int) -> list[str]:
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 30))) for _ in range(draw.randint(1, most))]


def drawn(encoder: str, seed: int = 0, **settings) -> LoRAClassifier:
    """A model whose adapters do something and whose dropout would show."""
    torch.manual_seed(seed)
    model = LoRAClassifier(encoder=encoder, **{"dropout": 0.5, **settings})
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.adapter.lora_B)
    return model


@pytest.fixture
def write(tiny_encoder, tmp_path):
    def make(name: str, seed: int, **settings):
        model = drawn(tiny_encoder(), seed, **settings)
        torch.save(checkpoint_of(model), tmp_path / f"{name}.ckpt")
        return tmp_path / f"{name}.ckpt"

    return make


@calls
@pytest.mark.parametrize(
    "kind", ["roberta", *(pytest.param(kind, marks=pytest.mark.attack) for kind in ("modernbert", "deberta-v2"))]
)
@pytest.mark.parametrize("trains", [False, True])
def test_one_classifier_on_both_sides_of_merging(trains, kind, count, tiny_encoder, monkeypatch):
    monkeypatch.setattr(plain, "MERGED_FROM", 6)
    model = drawn(tiny_encoder(kind)).train(trains)
    model.head.eval()
    modes = [module.training for module in model.modules()]
    jobs = [texts(random.Random(seed), 12) for seed in range(count)]
    expected = list(map(model.predict, jobs))
    assert in_threads(model.predict, jobs) == expected
    assert [module.training for module in model.modules()] == modes


@calls
def test_merging_disabling_and_reading_do_not_meet(count, tiny_encoder):
    model = drawn(tiny_encoder()).eval()
    own = texts(random.Random(0), 5)
    bits = {name: layer.weight.clone() for name, layer in lora_layers(model).items()}
    layer = next(iter(lora_layers(model).values()))

    def merged() -> torch.Tensor:
        with merged_lora(model):
            assert layer.merged
            return model.logits(own)

    def disabled() -> torch.Tensor:
        with merged_lora(model), disable_lora(model), merged_lora(model):
            return model.logits(own)

    def unmerged() -> torch.Tensor:
        assert not layer.merged
        return model.logits(own)

    ways = [merged, disabled, unmerged]
    expected = [way() for way in ways]
    assert not any(torch.equal(expected[0], other) for other in expected[1:])
    for number, got in enumerate(in_threads(lambda job: ways[job % 3](), list(range(count)))):
        assert torch.equal(got, expected[number % 3])
    assert all(torch.equal(layer.weight, bits[name]) for name, layer in lora_layers(model).items())


@calls
def test_a_merge_for_good_changes_no_answer_but_by_rounding_and_is_undone(count, tiny_encoder):
    model = drawn(tiny_encoder()).eval()
    own = texts(random.Random(0), 5)
    layers = list(lora_layers(model).values())
    bits, expected = [layer.weight.clone() for layer in layers], model.logits(own)

    def job(number: int) -> torch.Tensor:
        for layer in layers:
            layer.merge() if number % 2 else layer.unmerge()
        return model.logits(own)

    for got in in_threads(job, list(range(count))):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    for layer, weight in zip(layers, bits, strict=True):
        layer.unmerge()
        assert torch.equal(layer.weight, weight)
    assert torch.equal(model.logits(own), expected)


@calls
def test_mixed_adapters_while_others_come_and_go(count, write):
    paths = {
        "short": write("short", 1, max_length=6),
        "long": write("long", 2, max_length=30, lora={"r": 2, "target_modules": ("query", "mlp_up")}),
        "dora": write("dora", 3, max_length=12, lora={"variant": "dora"}),
        "head": write("head", 4, max_length=9, method="head"),
    }
    models = ManyAdapters(paths)

    def job(seed: int) -> tuple[list[str], list[str]]:
        draw = random.Random(seed)
        own = texts(draw, 12)
        return own, draw.choices(list(paths), k=len(own))

    def changed(number: int) -> None:
        models.load_adapter(f"more{number}", paths["long"])
        lora = LoRAConfig(r=1 + number % 4, target_modules=("key", "query"))
        models.bank.add("passing", lora)
        models.bank.load("passing", {name: t + 1 for name, t in models.bank.state_dict("passing").items()})
        models.bank.remove("passing")

    def answers(own: tuple[list[str], list[str]]) -> list[dict]:
        assert models.bank.state_dict("short").keys()
        return models.predict(*own)

    jobs = [job(seed) for seed in range(count)]
    expected = list(map(answers, jobs))
    stopped = threading.Event()

    def change() -> None:
        number = 0
        while not stopped.is_set():
            changed(number)
            number += 1
            stopped.wait(0.02)

    models.train()  # it stays in eval mode
    with ThreadPoolExecutor(1) as pool:
        changes = pool.submit(change)
        got = in_threads(answers, jobs)
        stopped.set()
        changes.result()
    assert got == expected
    assert len(models.members) > len(paths)
    assert set(models.bank.names) == {name for name, member in models.members.items() if member.has_adapter}


@calls
def test_one_tokenizer_with_many_limits(count, tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder())
    jobs = [(texts(random.Random(seed), 8), random.Random(seed).randint(3, 30)) for seed in range(count)]

    def ids(job: tuple[list[str], int]) -> list[int]:
        return tokenize(model.tokenizer, [job[0]], job[1]).ids.tolist()

    assert in_threads(ids, jobs) == list(map(ids, jobs))


def test_models_load_in_threads(write):
    from transformers import PreTrainedModel
    from transformers.utils import logging

    path = write("one", 1)
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), PreTrainedModel.tie_weights
    initializers = nn.init.normal_, nn.init.zeros_
    loaded = in_threads(LoRAClassifier.load_from_checkpoint, [path] * THREADS)
    expected = LoRAClassifier.load_from_checkpoint(path).logits(["good"])
    assert all(torch.equal(model.logits(["good"]), expected) for model in loaded)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), PreTrainedModel.tie_weights) == before
    assert (nn.init.normal_, nn.init.zeros_) == initializers


def bank_of(*names: str) -> AdapterBank:
    bank = AdapterBank(nn.Sequential(nn.Linear(6, 6)).requires_grad_(False))
    for name in names:
        bank.add(name, LoRAConfig(r=2, target_modules=("0",)))
    return bank


@pytest.mark.parametrize("change", ["remove", "load"])
def test_an_adapter_changes_when_no_forward_uses_it(change):
    bank = bank_of("one", "other")
    new = {name: tensor + 1 for name, tensor in bank.state_dict("one").items()}
    done = threading.Event()

    def changed() -> None:
        bank.remove("one") if change == "remove" else bank.load("one", new)
        done.set()

    x = torch.randn(1, 3, 6)
    with bank.route(["one"], [3]):
        y = bank.model(x)
        thread = threading.Thread(target=changed)
        thread.start()
        assert not done.wait(0.05)
        with bank.route(["one", None], [1, 2]):  # what uses it already is not held up
            pass
        with bank.route(["other"], [3]):
            pass
        assert torch.equal(bank.model(x), y)
    thread.join(10)
    assert done.is_set()


@pytest.mark.parametrize("change", ["remove", "load", "add"])
def test_a_thread_does_not_wait_for_itself(change):
    bank = bank_of("one")
    state, config = bank.state_dict("one"), bank.configs["one"]
    changes = {
        "remove": lambda: bank.remove("one"),
        "load": lambda: bank.load("one", state),
        "add": lambda: bank.add("one", config),
    }
    with bank.route(["one"], [1]), bank.route([None], [1]), pytest.raises(LoRAError) as error:
        changes[change]()
    assert error.value.key == "adapter"
    assert bank.names == ["one"]


def test_threads_that_change_what_others_use_do_not_wait_for_each_other():
    bank = bank_of("a", "b")
    with bank.route(["a"], [1]), pytest.raises(LoRAError):
        bank.remove("b")  # another may hold b and wait for a
    removed = threading.Thread(target=bank.remove, args=["b"], daemon=True)
    with bank.route(["b"], [1]):
        removed.start()
        while "b" not in bank._routes._closed:
            pass
        with bank.route(["a", "b"], [1, 1]), bank.route(["b"], [1]):
            pass
    removed.join(10)
    assert bank.names == ["a"]


def test_banks_route_by_themselves():
    one, other = bank_of("a"), bank_of("a")
    x = torch.randn(1, 2, 6)
    with one.route(["a"], [2]):
        with pytest.raises(LoRAError):
            other.model(x)
        with other.route(["a", None], [1, 1]):
            assert one.model(x).shape == other.model(x).shape
    with pytest.raises(LoRAError):
        one.model(x)


def test_tasks_of_one_thread_route_by_themselves():
    bank, x = bank_of("a", "b"), torch.randn(1, 2, 6)
    for name in bank.names:
        nn.init.normal_(bank.parameters(name)[1])

    async def answer(name: str) -> torch.Tensor:
        with bank.route([name], [2]):
            await asyncio.sleep(0)
            return bank.model(x)

    async def together() -> list[torch.Tensor]:
        return await asyncio.gather(*(answer(name) for name in "abab"))

    one, other, *again = asyncio.run(together())
    assert not torch.equal(one, other)
    assert torch.equal(one, again[0])
    assert torch.equal(other, again[1])


def test_an_error_in_one_call_leaves_every_mode_as_it_was(tiny_encoder, monkeypatch):
    model = drawn(tiny_encoder()).train()
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="inside"):
        patched.setattr(model.head, "forward", lambda x: (_ for _ in ()).throw(RuntimeError("inside")))
        model.predict(["good"])
    assert all(module.training for module in model.modules())
    model.predict(["good"])
    assert all(module.training for module in model.modules())


def test_copies_of_a_bank_are_used_by_nobody():
    bank = bank_of("a")
    x = torch.randn(1, 2, 6)
    with bank.route(["a"], [2]):
        expected, twin = bank.model(x), copy.deepcopy(bank)
    with twin.route(["a"], [2]):
        assert torch.equal(twin.model(x), expected)
    twin.remove("a")
    assert bank.names == ["a"]


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", ["roberta", "modernbert", "deberta-v2"])
def test_copies_of_a_classifier_are_whole_and_independent(kind, copied, tiny_encoder):
    model = drawn(tiny_encoder(kind)).eval()
    own = texts(random.Random(0), 8)
    expected = model.logits(own)
    twin = copied(model)
    assert torch.equal(twin.logits(own), expected)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(model.logits(own), expected)
    assert not twin.logits(own).any()


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_of_many_adapters_are_whole_and_independent(copied, write):
    models = ManyAdapters({"one": write("one", 1), "other": write("other", 2)})
    own, asked = texts(random.Random(0), 8), ["one", "other"] * 4
    expected = models.predict(own, asked[: len(own)])
    twin = copied(models)
    assert twin.predict(own, asked[: len(own)]) == expected
    twin.bank.remove("one")
    assert models.predict(own, asked[: len(own)]) == expected


@pytest.mark.attack
def test_a_pickled_model_answers_in_another_process(tiny_encoder, tmp_path):
    model = drawn(tiny_encoder()).eval()
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    script = "import pickle; print(*pickle.load(open('model.pkl', 'rb')).logits(['good'])[0].tolist())"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    got = [float(number) for number in done.stdout.split()]
    assert got == pytest.approx(model.logits(["good"])[0].tolist(), abs=rounding(TINY_TERMS)), done.stderr


def test_weights_are_averaged_by_a_plain_trainer(tiny_encoder, glue_folder):
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    model = LoRAClassifier.for_data(data, learning_rate=1e-2)
    swa = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=1)
    Trainer(max_epochs=3, precision="32-true", callbacks=[swa], logger=False, accelerator="cpu").fit(model, data)
    averaged = swa._average_model.state_dict()
    assert averaged.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in model.state_dict().items())


@pytest.mark.attack
@pytest.mark.parametrize("export", [False, True])
def test_spawned_processes_train_and_predict(export, tiny_encoder, glue_folder, tmp_path):
    (tmp_path / "export.yaml").write_text(
        "trainer:\n  callbacks:\n  - class_path: lora_pl.callbacks.merged_export.MergedExport\n" if export else "{}\n"
    )
    spawned = ["--trainer.strategy", "ddp_spawn", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    own = ["--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--trainer.max_epochs", "1"]
    run_cli(["fit", "--config", "export.yaml", *own, *spawned, "--run_name", "r"], tmp_path, check=True)
    checkpoint = tmp_path / "checkpoints" / "r" / "best.ckpt"
    refused = run_cli(["fit", *own, *spawned, "--run_name", "s", "--model.nonfinite_loss", "skip"], tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("lora_pl fit: model.nonfinite_loss: ")
    (tmp_path / "in.txt").write_text("the film is good\nthe plot is bad\nfine\n")
    asked = ["predict", "--ckpt_path", str(checkpoint), "--input", "in.txt", "--trainer.precision", "32-true"]
    for name, options in {"two": spawned, "one": ["--trainer.accelerator", "cpu"]}.items():
        run_cli([*asked, "--output", f"{name}.jsonl", *options], tmp_path, check=True)
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()
    assert (checkpoint.parent / "merged").is_dir() == export
