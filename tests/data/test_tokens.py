import json
from shutil import copytree

import numpy as np
import pytest
from tokenizers import processors

from lora_pl.data import tokens as tokens_module
from lora_pl.data.examples import Examples
from lora_pl.data.tokens import Tokens, tokenize, tokenize_cached
from lora_pl.encoder.loading import load_tokenizer
from lora_pl.errors import UserError

TEXTS = ["the film is good", "", "the plot is very very dull and the cast is bad", "fine"]
EXAMPLES = Examples((TEXTS,), [1.0, 0.0, 0.0, 1.0])


@pytest.fixture
def tokenizer(tiny_encoder):
    return load_tokenizer(tiny_encoder())


def sentence(tokens: Tokens, index: int) -> list[int]:
    return tokens.ids[tokens.offsets[index] : tokens.offsets[index + 1]].tolist()


def test_the_flat_array_holds_what_the_tokenizer_says(tokenizer):
    tokens = tokenize(tokenizer, [TEXTS], 38)
    assert [sentence(tokens, i) for i in range(4)] == [tokenizer(text).input_ids for text in TEXTS]
    assert tokens.cut == 0
    assert tokens.lengths.tolist() == [6, 2, 13, 3]


def test_an_empty_text_without_special_tokens_is_one_unknown_token(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    tokens = tokenize(tokenizer, [["", "fine"]], 38)
    assert [sentence(tokens, i) for i in range(2)] == [[tokenizer.unk_token_id], tokenizer("fine").input_ids]


@pytest.mark.parametrize(("columns", "least"), [([TEXTS], 3), ([TEXTS, TEXTS], 5)])
def test_special_tokens_leave_room_for_text(columns, least, tokenizer, tmp_path):
    """`tokenizers` would cut nothing."""
    assert max(tokenize(tokenizer, columns, least).lengths) == least
    examples = Examples(tuple(columns), [0.0] * len(TEXTS))
    for refused in (lambda: tokenize(tokenizer, columns, least - 1),
                    lambda: tokenize_cached(tokenizer, examples, least - 1, tmp_path)):  # fmt: skip
        with pytest.raises(UserError, match=f"^data.max_length: expected at least {least}, .* got {least - 1}"):
            refused()


def test_long_sentences_are_cut_and_counted(tokenizer):
    tokens = tokenize(tokenizer, [TEXTS], 6)
    assert tokens.cut == 1
    assert tokens.lengths.max() == 6
    assert sentence(tokens, 2)[-1] == tokenizer.sep_token_id


@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_pairs_and_where_their_second_text_begins(kind, tiny_encoder):
    tokenizer = load_tokenizer(tiny_encoder(kind))
    tokens = tokenize(tokenizer, [["the film"], ["good cast"]], 38)
    encoded = tokenizer("the film", "good cast")
    assert sentence(tokens, 0) == encoded.input_ids
    assert tokens.second.tolist() == [sum(encoded.get("token_type_ids", []))]
    assert tokens.second.tolist() == [3 if kind == "bert" else 0]


def test_rules_that_name_a_token_that_is_not_there(tiny_encoder, tmp_path):
    """Rust's panic, which Python does not count among its exceptions."""
    folder = copytree(tiny_encoder(), tmp_path / "broken")
    definition = json.loads((folder / "tokenizer.json").read_text())
    rule = {"SpecialToken": {"id": "[ABSENT]", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [rule], "pair": [rule], "special_tokens": {}}
    (folder / "tokenizer.json").write_text(json.dumps(definition | {"post_processor": template}))
    with pytest.raises(UserError, match="can't tokenize"):
        tokenize(load_tokenizer(str(folder)), [["a fine film"]], 8)


def test_chunks_join_without_a_seam(tokenizer, monkeypatch):
    whole = tokenize(tokenizer, [TEXTS], 38)
    monkeypatch.setattr(tokens_module, "CHUNK", 3)
    parts = tokenize(tokenizer, [TEXTS], 38)
    assert np.array_equal(whole.ids, parts.ids)
    assert np.array_equal(whole.offsets, parts.offsets)


def test_the_cache_answers_without_the_tokenizer(tokenizer, tmp_path, monkeypatch):
    first = tokenize_cached(tokenizer, EXAMPLES, 6, tmp_path)
    assert first.cut == 1
    monkeypatch.setattr(tokens_module, "tokenize", lambda *args, **kwargs: pytest.fail("tokenized again"))
    again = tokenize_cached(tokenizer, EXAMPLES, 6, tmp_path)
    assert again.cut == 1
    for name in ("ids", "offsets", "second", "labels"):
        assert np.array_equal(getattr(first, name), getattr(again, name))


def test_the_cache_tells_contents_lengths_and_tokenizers_apart(tokenizer, tiny_encoder, tmp_path):
    import copy

    other = copy.deepcopy(tokenizer)
    other.add_tokens(["film"])
    tokenize_cached(tokenizer, EXAMPLES, 6, tmp_path)
    tokenize_cached(tokenizer, EXAMPLES, 7, tmp_path)
    tokenize_cached(tokenizer, Examples((TEXTS,), [0.0] * 4), 6, tmp_path)
    tokenize_cached(tokenizer, Examples((["x", *TEXTS[1:]],), EXAMPLES.labels), 6, tmp_path)
    tokenize_cached(other, EXAMPLES, 6, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    tokenizer("x", truncation=True, max_length=3)  # a limit left on the tokenizer is not part of the key
    tokenize_cached(tokenizer, EXAMPLES, 6, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_full_disk_is_done_without(tokenizer, tmp_path, monkeypatch):
    import safetensors.numpy

    def fail(*args, **kwargs):
        raise safetensors.SafetensorError("I/O error: no space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    assert len(tokenize_cached(tokenizer, EXAMPLES, 6, tmp_path)) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"not tensors"])
def test_a_damaged_cache_is_made_again(tokenizer, tmp_path, damage):
    tokenize_cached(tokenizer, EXAMPLES, 6, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    assert len(tokenize_cached(tokenizer, EXAMPLES, 6, tmp_path)) == 4
    assert path.read_bytes() != damage


def test_a_cache_that_cannot_be_written_is_done_without(tokenizer, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert len(tokenize_cached(tokenizer, EXAMPLES, 6, blocked / "cache")) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("model_input_names", ["input_ids", "token_type_ids"]), ("truncation_side", "left"),
     ("split_special_tokens", True), ("pad_token", "<mask>")],
)  # fmt: skip
def test_the_cache_tells_settings_of_the_tokenizer_apart(name, value, tokenizer, tmp_path):
    tokenize_cached(tokenizer, EXAMPLES, 6, tmp_path)
    setattr(tokenizer, name, value)
    tokenize_cached(tokenizer, EXAMPLES, 6, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_changed_byte_of_a_cache_is_found(tokenizer, tmp_path):
    tokens = tokenize_cached(tokenizer, EXAMPLES, 6, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    arrays = range(len(content) - tokens.ids.nbytes - tokens.labels.nbytes, len(content), 7)
    for place in (*arrays, content.index(b'"cut":"1"') + 7, content.index(b"I32") + 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert tokenize_cached(tokenizer, EXAMPLES, 6, tmp_path).fingerprint == tokens.fingerprint
