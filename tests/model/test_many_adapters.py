import pytest
import torch

from lora_pl.errors import UserError
from lora_pl.formats.importing import checkpoint_of
from lora_pl.lora import lora_layers
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.model.many_adapters import ManyAdapters
from tests.support import TINY_TERMS, rounding

SENTENCES = ["the film is good", "dull", "the plot is very slow and the cast is awful", "fine"]
PAIRS = [("the film is good", "the film is bad"), ("dull", "the plot is slow"), ("fine", "great"), ("bad", "bad")]


SINGLE = {}
"""The model of each checkpoint."""


@pytest.fixture(scope="module")
def write(tiny_encoder, tmp_path_factory):
    """Writes the checkpoint of an untrained model whose adapter does something."""

    def make(name: str, kind: str = "roberta", **settings):
        torch.manual_seed(len(name))
        model = LoRAClassifier(encoder=tiny_encoder(kind), **settings)
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.adapter.lora_B)
        path = tmp_path_factory.mktemp("models") / f"{name}.ckpt"
        torch.save(checkpoint_of(model), path)
        SINGLE[path] = model
        return path

    return make


def assert_same(answers, expected):
    assert len(answers) == len(expected)
    for answer, other in zip(answers, expected, strict=True):
        assert answer.get("label") == other.get("label")
        assert answer["score"] == pytest.approx(other["score"], abs=rounding(TINY_TERMS))


@pytest.mark.parametrize("kind", ["roberta", "bert", "distilbert"])
@pytest.mark.parametrize("head", ["linear", "architecture"])
def test_mixed_batches_say_what_single_models_say(kind, head, write):
    paths = {
        "sst2": write("sst2", kind, head=head),
        "rte": write("rte", kind, head=head, task="rte", lora={"r": 2, "target_modules": ("query", "key", "value")}),
        "stsb": write("stsb", kind, head=head, task="stsb", lora={"r": 8, "lora_alpha": 3}),
        "headonly": write("headonly", kind, head=head, method="head"),
    }
    models = ManyAdapters(paths)
    asked = ["sst2", "rte", "headonly", "stsb"] * 4
    texts = [(PAIRS if name in ("rte", "stsb") else SENTENCES)[i // 4] for i, name in enumerate(asked)]
    answers = models.predict(texts, asked)
    for name, path in paths.items():
        own = [place for place, other in enumerate(asked) if other == name]
        expected = SINGLE[path].predict([texts[place] for place in own])
        assert_same([answers[place] for place in own], expected)
        assert_same(models.predict([texts[place] for place in own], name), expected)


def test_the_base_is_there_once_and_adapters_come_later(write):
    models = ManyAdapters({"a": write("a")})
    before = {name: p.data_ptr() for name, p in models.encoder.named_parameters() if "lora" not in name}
    path = write("bb", lora={"r": 1})
    models.load_adapter("b", path)
    after = {
        name: p.data_ptr()
        for name, p in models.encoder.named_parameters()
        if "lora" not in name and "adapters" not in name
    }
    assert after == before
    models.set_adapter("b")
    assert_same(models.predict(SENTENCES), LoRAClassifier.load_from_checkpoint(path).predict(SENTENCES))
    assert models.predict([], "a") == []


def test_bfloat16_stays_near(write):
    paths = {"a": write("a"), "b": write("bb")}
    exact, rounded = ManyAdapters(paths), ManyAdapters(paths, base_dtype="bfloat16")
    for one, other in zip(exact.predict(SENTENCES, "b"), rounded.predict(SENTENCES, "b"), strict=True):
        near = rounding(4, torch.bfloat16, 0.25)  # two sums a layer are rounded; a probability's slope is at most 1/4
        assert one["probabilities"]["positive"] == pytest.approx(other["probabilities"]["positive"], abs=near)


@pytest.mark.parametrize("name", ["train", "values", "a.b"])
def test_a_name_may_be_that_of_an_attribute(name, write):
    path = write("a")
    models = ManyAdapters({name: path})
    assert_same(models.predict(SENTENCES, name), SINGLE[path].predict(SENTENCES))


@pytest.fixture(scope="module")
def one(write):
    return ManyAdapters({"a": write("a")})


@pytest.mark.parametrize(
    ("ask", "key"),
    [
        (lambda models, write: models.predict(SENTENCES, "c"), "adapter"),
        (lambda models, write: models.predict(SENTENCES, ""), "adapter"),
        (lambda models, write: models.set_adapter("c"), "adapter"),
        (lambda models, write: models.predict(SENTENCES, ["a"]), "adapter"),
        (lambda models, write: models.predict("dull", "a"), "predict.texts"),
        (lambda models, write: models.predict(PAIRS, "a"), "adapter"),
        (lambda models, write: models.load_adapter("a", write("a")), "adapter"),
        (lambda models, write: models.load_adapter("b", write("b", method="full")), "adapter"),
        (lambda models, write: models.load_adapter("b", write("b", train_biases="lora")), "adapter"),
        (lambda models, write: ManyAdapters({"a": write("a", train_norms=True)}), "adapter"),
        (lambda models, write: models.load_adapter("b", write("b", "electra")), "adapter"),
        (lambda models, write: ManyAdapters({}), "adapter"),
        (lambda models, write: ManyAdapters({"a": write("a")}, base_dtype="bf16"), "model"),
    ],
)
def test_mistakes(ask, key, one, write):
    before = one.predict(SENTENCES), list(one.members), one.active
    with pytest.raises(UserError, match=f"^{key}: "):
        ask(one, write)
    assert (one.predict(SENTENCES), list(one.members), one.active) == before


def test_heads_of_two_kinds_share_a_bert(write):
    paths = {"a": write("a", "bert"), "b": write("bb", "bert", head="architecture")}
    models = ManyAdapters(paths)
    for name, path in paths.items():
        assert_same(models.predict(SENTENCES, name), SINGLE[path].predict(SENTENCES))
