"""What every row of ARCHITECTURES promises, on tiny random encoders; a new row inherits all of it."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from lora_pl.encoder import attention
from lora_pl.encoder.architectures import (
    ARCHITECTURES,
    LIKE_ROBERTA,
    OTHERS,
    Architecture,
    architecture_of,
    module_names,
    require_shared_batches,
)
from lora_pl.encoder.dtype import cast_frozen
from lora_pl.encoder.features import FirstTokenFeatures
from lora_pl.encoder.fingerprint import weights_fingerprint
from lora_pl.encoder.loading import build_encoder, load_config, load_encoder, max_tokens
from lora_pl.encoder.packing import Packing
from lora_pl.errors import UserError
from lora_pl.lora import (
    AdapterBank,
    LoRAConfig,
    LoRAError,
    adapter_state_dict,
    inject_lora,
    lora_layers,
    mark_only_lora_as_trainable,
    remove_lora,
)
from lora_pl.lora.injection import linear_layers
from tests.support import rounding, tiny_config

KINDS = tuple(ARCHITECTURES)
PACKED = tuple(kind for kind, row in ARCHITECTURES.items() if row.packed)
WITH_HEAD = tuple(kind for kind, row in ARCHITECTURES.items() if row.head)
LENGTHS = ([7, 3, 12, 3], [5], [4, 4, 4], [38, 2, 2])
TERMS = 2 * 4 * 38 * 16
"""Products and sums of a tiny encoder, one after the other: layers x steps x tokens x width."""

WIDE = 0.3
"""A width of the random weights at which a token more or less in attention shows."""


def adapted(encoder: nn.Module, *roles: str) -> list[str]:
    """LoRA whose B is not zero on the roles, the only thing trained; the names of its layers."""
    names = inject_lora(encoder, module_names(LoRAConfig(r=2, target_modules=roles), encoder.config))
    mark_only_lora_as_trainable(encoder)
    for layer in lora_layers(encoder).values():
        nn.init.normal_(layer.adapter.lora_B, std=0.3)
    return names


def made(kind: str, **changes) -> tuple[FirstTokenFeatures, nn.Module]:
    """An encoder in train mode with LoRA on query and value, without dropout."""
    torch.manual_seed(0)
    config = tiny_config(kind, initializer_range=WIDE, **changes)
    config.update(dict.fromkeys(architecture_of(config).dropouts, 0.0))
    encoder = build_encoder(config).train()
    adapted(encoder, "query", "value")
    return FirstTokenFeatures(encoder), encoder


SPECIAL = [[0, 5, 1, 6, 2], [0, 1, 1, 2], [0, 3, 0, 9, 2, 1, 7, 2], [1, 1], [0, 8, 2], [0, 63, 1, 2, 2, 1]]
"""Tokens that a text may spell out: `<s>`, `<pad>`, `</s>`, `<unk>`."""


def sentences(lengths) -> list[torch.Tensor]:
    return [torch.randint(4, 60, (length,)) for length in lengths]


def packed(features, ids):
    row = torch.cat(ids)[None]
    return features.of_packed(row, row % 2, packing_of(ids))


def packing_of(ids, filler=0):
    return Packing([len(s) for s in ids], filler=filler, pads=torch.cat(ids).eq(1).nonzero().flatten().tolist())


def filled(features, ids):
    """As `Batch.filled` makes a row: seven tokens of padding at its end, attention in common shapes."""
    row, types = torch.cat([*ids, torch.ones(7, dtype=torch.int64)])[None], torch.cat([*ids, torch.zeros(7).long()])
    return features.of_packed(row, types[None] % 2, packing_of(ids, filler=7))[: len(ids)]


def in_rectangle(features, ids):
    """As on a GPU."""
    with mock.patch.object(attention, "_in_rectangle", return_value=True):
        return filled(features, ids)


def padded(features, ids):
    return features.of_padded(*padded_batch(ids))


def padded_batch(ids):
    rows = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=1)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in ids], batch_first=True)
    return rows, rows % 2 * mask, mask


def gradients(encoder) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.requires_grad}
    encoder.zero_grad()
    return found


def features_and_gradients(way, features, encoder, ids):
    h = way(features, ids)
    (h * torch.linspace(-1, 1, h.numel()).view_as(h)).sum().backward()
    return h.detach(), gradients(encoder)


def assert_packed_is_padded(kind, lengths, **changes):
    features, encoder = made(kind, **changes)
    ids = sentences(lengths)
    expected, expected_gradients = features_and_gradients(padded, features, encoder, ids)
    for way in (packed, filled, in_rectangle):
        got, got_gradients = features_and_gradients(way, features, encoder, ids)
        torch.testing.assert_close(got, expected, rtol=0, atol=rounding(TERMS))
        for name, gradient in expected_gradients.items():
            error = (got_gradients[name] - gradient).norm() / gradient.norm()
            assert error < rounding(TERMS), f"{way.__name__}, {name}"


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers_own_forward(kind, special, tiny_encoder):
    """Of texts with special tokens in them too: positions of RoBERTa's kind leave out a text's own `<pad>`."""
    stock = AutoModel.from_pretrained(tiny_encoder(kind), dtype=torch.float32).eval()
    encoder = load_encoder(tiny_encoder(kind)).eval()
    assert weights_fingerprint(encoder) == weights_fingerprint(without_pooler(stock))
    features = FirstTokenFeatures(encoder)
    ids = [torch.tensor(own) for own in SPECIAL] if special else sentences(LENGTHS[0])
    rows, types, mask = padded_batch(ids)
    typed = {"token_type_ids": types} if architecture_of(stock.config).has_token_types(stock.config) else {}
    with torch.no_grad():
        expected = stock(input_ids=rows, attention_mask=mask, **typed).last_hidden_state[:, 0]
        ways = [padded, packed, filled] if kind in PACKED else [padded]
        found = [way(features, ids) for way in ways]
    for got in found:
        torch.testing.assert_close(got, expected, rtol=0, atol=rounding(TERMS))


def without_pooler(stock):
    if hasattr(stock, "pooler"):
        stock.pooler = None
    return stock


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_sentence_has_positions(kind, tiny_encoder):
    encoder = load_encoder(tiny_encoder(kind)).eval()
    limit = max_tokens(encoder.config)
    assert limit == 40 - architecture_of(encoder.config).first_position(encoder.config)
    assert encoder(torch.full((1, limit), 5)).last_hidden_state.shape == (1, limit, 16)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", PACKED)
def test_packed_is_padded(kind, lengths):
    assert_packed_is_padded(kind, lengths)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PACKED])
def test_a_packed_row_is_refused_where_it_would_be_one_sentence(kind):
    features, _ = made(kind)
    with pytest.raises(UserError, match="^data.batching: "):
        packed(features, sentences([5, 3]))


@pytest.mark.parametrize("lengths", [[64, 64], [64, 3, 5, 40, 9, 6], [70]])
def test_a_local_window_is_kept_in_sentences_longer_than_it(lengths):
    assert_packed_is_padded("modernbert", lengths, max_position_embeddings=80)


def test_a_local_window_is_transformers_own():
    def encoders(**changes):
        config = tiny_config(
            "modernbert", max_position_embeddings=80, num_hidden_layers=3, initializer_range=WIDE, **changes
        )
        for build in (build_encoder, lambda config: AutoModel.from_config(config, dtype=torch.float32)):
            torch.manual_seed(0)
            yield build(config).eval()

    ids = sentences([64, 20, 3])
    ours, stock = encoders()
    wider, _ = encoders(local_attention=10)  # a place more on either side
    with torch.no_grad():
        got = packed(FirstTokenFeatures(ours), ids)
        expected = torch.cat([stock(input_ids=one[None]).last_hidden_state[:, 0] for one in ids])
        farther = packed(FirstTokenFeatures(wider), ids)
    torch.testing.assert_close(got, expected, rtol=0, atol=rounding(TERMS))
    assert (farther - got).abs().max(1).values[:2].min() > 100 * rounding(TERMS)


@pytest.mark.parametrize("kind", KINDS)
def test_no_sentence_sees_another(kind):
    features, _ = made(kind)
    first, second, third = sentences([6, 6, 9])
    way = packed if kind in PACKED else padded
    one = way(features, [first, second, third])
    other = way(features, [first, sentences([6])[0], third])
    assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert not torch.equal(one[1], other[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_dropout_of_all_places_is_set(kind, tiny_encoder):
    encoder = load_encoder(tiny_encoder(kind), dropout=0.5)
    found = [module.p for module in encoder.modules() if isinstance(module, nn.Dropout)]
    found += [value for module in encoder.modules() for name, value in vars(module).items()
              if "dropout" in name and isinstance(value, float)]  # fmt: skip
    assert len(found) >= 2 * encoder.config.num_hidden_layers
    assert set(found) == {0.5}
    ids = torch.full((1, 8), 5)
    assert not torch.equal(encoder(ids).last_hidden_state, encoder(ids).last_hidden_state)


@pytest.mark.parametrize("kind", KINDS)
def test_each_role_is_one_layer_of_every_block(kind):
    roles = ("query", "key", "value", "attention_output", "mlp_up", "mlp_down")
    assert set(architecture_of(tiny_config(kind)).roles) == set(roles)
    layers = [adapted(build_encoder(tiny_config(kind)), role) for role in roles]
    assert [len(names) for names in layers] == [2] * len(roles)
    assert len({name for names in layers for name in names}) == 2 * len(roles)


@pytest.mark.parametrize("kind", KINDS)
def test_roles_are_what_they_are_called(kind):
    """A lone token attends to itself whatever query and key are; of other tokens, the last block's first one reads keys
    and values alone; and only the MLP has the intermediate size."""
    encoder, ids = build_encoder(tiny_config(kind)).eval(), sentences([3])
    features, names = FirstTokenFeatures(encoder), {}
    for role in architecture_of(encoder.config).roles:
        *_, names[role] = adapted(encoder, role)
        remove_lora(encoder)
    last = {role: encoder.get_submodule(name) for role, name in names.items()}
    alone = {role for role, layer in last.items() if is_read(features, ids[0][:1], layer, 0)}
    assert alone == {"value", "attention_output", "mlp_up", "mlp_down"}
    assert {role for role, layer in last.items() if is_read(features, ids[0], layer, 2)} == {"key", "value"}
    sizes = {role: (layer.in_features, layer.out_features) for role, layer in last.items()}
    assert sizes["mlp_down"] == (2 * 16, 16)
    assert sizes["mlp_up"] in [(16, 2 * 16), (16, 2 * 2 * 16)]  # with a gate or without


def is_read(features, ids, layer, token) -> bool:
    """Whether a sentence's feature depends on what the layer gives for one of its tokens."""

    def changed(layer, args, y):
        if y.shape[1] == len(ids):  # else of relative positions
            y[:, token] += torch.linspace(1, 2, y.shape[-1])

    with torch.no_grad():
        before = padded(features, [ids])
        with layer.register_forward_hook(changed):
            return not torch.equal(padded(features, [ids]), before)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_without_weights(kind):
    with torch.device("meta"):
        encoder, stock = build_encoder(tiny_config(kind)), AutoModel.from_config(tiny_config(kind))
        adapted(encoder, "query", "value")
    counted = sum(parameter.numel() for parameter in encoder.parameters() if not parameter.requires_grad)
    assert counted == without_pooler(stock).num_parameters()
    assert encoder.num_parameters(only_trainable=True) == 2 * 2 * 2 * (16 + 16)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_on_query_and_value_trains_exactly_those(kind):
    features, encoder = made(kind)
    padded(features, sentences([5, 3])).square().sum().backward()
    names = list(lora_layers(encoder))
    assert len(names) == 2 * encoder.config.num_hidden_layers
    trained = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert trained == {f"{name}.adapter.lora_{part}" for name in names for part in "AB"}
    assert all(parameter.grad.any() for parameter in encoder.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("kind", [kind for kind, row in ARCHITECTURES.items() if row.shares_batches])
def test_in_a_bank_each_sentence_goes_through_its_own_adapter(kind):
    features, encoder = made(kind)
    ids, way = sentences([6, 6, 6]), packed if kind in PACKED else padded
    own, state = way(features, ids), adapter_state_dict(encoder)
    remove_lora(encoder)
    base = way(features, ids)
    bank = AdapterBank(encoder)
    bank.add("own", module_names(LoRAConfig(r=2, target_modules=("query", "value")), encoder.config), state)
    with bank.route(["own", None, "own"], [6, 6, 6]):
        got = way(features, ids)
    expected = torch.stack([own[0], base[1], own[2]])
    torch.testing.assert_close(got, expected, rtol=0, atol=rounding(TERMS))
    assert (own - base).abs().max() > 100 * rounding(TERMS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_of_16_bits_computes_the_same_to_its_rounding(kind):
    features, encoder = made(kind)
    ids = sentences([7, 3, 5])
    way = packed if kind in PACKED else padded
    expected = way(features, ids).detach()
    cast_frozen(encoder, torch.bfloat16)
    assert {p.dtype for m in encoder.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()} == {
        torch.float32
    }
    with torch.autocast("cpu", torch.bfloat16):
        got = way(features, ids)
    got.float().square().sum().backward()
    # bfloat16 keeps 8 bits; some 20 roundings of a number follow each other
    assert (got.float() - expected).norm() / expected.norm() < 20**0.5 * 2**-7
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_independent(kind):
    features, encoder = made(kind)
    ids = sentences([5, 3])
    way = packed if kind in PACKED else padded
    expected = way(features, ids)
    twin = copy.deepcopy(features)
    for parameter in encoder.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(way(twin, ids), expected)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "modernbert"])
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    features, encoder = made(kind)
    ids = sentences([5, 9, 2])
    packed(features, ids).square().sum().backward()
    expected = gradients(encoder)
    encoder.gradient_checkpointing_enable()
    packed(features, ids).square().sum().backward()
    for name, gradient in gradients(encoder).items():
        torch.testing.assert_close(gradient, expected[name])


def test_512_tokens_beside_one():
    features, _ = made("roberta", max_position_embeddings=514)
    ids = sentences([512, 1])
    torch.testing.assert_close(packed(features, ids), padded(features, ids), rtol=0, atol=rounding(TERMS))


def test_an_encoder_without_a_row_is_padded_and_keeps_its_names():
    from transformers import AlbertConfig

    size = {"embedding_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AlbertConfig(vocab_size=64, intermediate_size=32, pad_token_id=1, **size)
    encoder = build_encoder(config).eval()
    assert not architecture_of(config).packed
    assert module_names(LoRAConfig(target_modules=("query",)), config).target_modules == ("query",)
    rows, types, mask = padded_batch(sentences([5, 3]))
    expected = encoder(input_ids=rows, token_type_ids=types, attention_mask=mask).last_hidden_state[:, 0]
    assert torch.equal(FirstTokenFeatures(encoder).of_padded(rows, types, mask), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_roles_are_all_linear_layers_of_the_blocks(kind):
    """But X-MOD's adapters of languages; no embedding's, no pooler's."""

    with torch.device("meta"):
        encoder = build_encoder(tiny_config(kind))
    linear = linear_layers(encoder)

    def placed(*names: str, **changes) -> list[str]:
        config = LoRAConfig(r=2, target_modules=names, **changes)
        found = inject_lora(encoder, module_names(config, encoder.config))
        assert remove_lora(encoder) == found
        return found

    blocks = [name for name in linear if ".0." in name or ".1." in name]
    attention, mlp = placed("attention"), placed("mlp")
    assert attention == placed("query", "key", "value", "attention_output")
    assert mlp == placed("mlp_up", "mlp_down")
    assert not set(attention) & set(mlp)
    assert {*attention, *mlp} == {name for name in blocks if "adapter_modules" not in name}
    assert placed("all-linear") == placed("attention", "mlp") == [name for name in linear if name in attention + mlp]
    assert placed("all-linear", exclude=("mlp",)) == placed("all-linear", exclude=("mlp_up", "mlp_down")) == attention
    assert placed("query", "mlp", exclude="attention") == mlp
    assert placed("all-linear", layers="1") == [name for name in [*attention, *mlp] if ".1." in name]
    assert placed("all-linear", exclude="key", rank_pattern={"attention": 1}) == placed("all-linear", exclude="key")
    with pytest.raises(LoRAError, match="^layers: "):
        placed("all-linear", layers="1-2")


@pytest.mark.parametrize("row", [OTHERS, Architecture(roles={"query": "query"})])
def test_a_group_that_an_architecture_lacks_is_an_error_that_lists_its_layers(row, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "bert", row)
    encoder = build_encoder(tiny_config("bert"))
    with pytest.raises(LoRAError, match=r"^target_modules: .*encoder.layer.\*.intermediate.dense"):
        inject_lora(encoder, module_names(LoRAConfig(target_modules="mlp"), encoder.config))


@pytest.mark.parametrize("kind", ["albert", "mobilebert", "convbert", "esm", "fnet"])
def test_all_linear_without_a_row_is_the_whole_encoder_without_pooler_and_head(kind):
    with torch.device("meta"):
        encoder = build_encoder(tiny_config(kind))
    names = [name for name in linear_layers(encoder) if "pooler" not in name and "head" not in name]
    config = LoRAConfig(r=1, target_modules="all-linear")
    assert architecture_of(encoder.config) is OTHERS
    assert inject_lora(encoder, module_names(config, encoder.config)) == names


@pytest.mark.parametrize("kind", LIKE_ROBERTA)
def test_without_a_row_too_there_are_positions_for_the_most_tokens(kind):
    config = tiny_config(kind)
    longest = max_tokens(config)
    encoder = build_encoder(config).eval()
    for extra in range(2):
        ids = torch.full((1, longest + extra), 5)
        with pytest.raises((IndexError, RuntimeError)) if extra else nullcontext():
            encoder(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize(("kind", "settings"), [("gpt2", {}), ("bert", {"is_decoder": True}), ("t5", {})])
def test_a_decoder_is_refused(kind, settings, tmp_path):
    AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="^model.encoder: "):
        load_config(str(tmp_path))


def test_an_encoder_whose_dropout_is_not_known(tiny_encoder, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "roberta", replace(ARCHITECTURES["roberta"], dropouts=()))
    with pytest.raises(UserError, match="^model.dropout: "):
        load_encoder(tiny_encoder(), dropout=0.1)


def test_where_an_adapter_sees_more_than_sentences_batches_are_not_shared():
    for kind in KINDS:
        if ARCHITECTURES[kind].shares_batches:
            require_shared_batches(tiny_config(kind))
    with pytest.raises(UserError, match="^model.encoder: "):
        require_shared_batches(tiny_config("deberta-v2"))
