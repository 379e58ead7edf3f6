import pytest
import torch
from torch import nn

from lora_pl import LoRAClassifier, SentenceDataModule
from lora_pl.callbacks import precision_report
from lora_pl.callbacks.precision_report import PrecisionReport, check_loss_scaling, check_optimizer_state, computed_type
from lora_pl.errors import UserError
from lora_pl.lora import VARIANTS
from lora_pl.model.precision import cpu_has_bf16, default_precision
from tests.model.test_classifier import trainer


def fit(precision, tiny_encoder, glue_folder, tmp_path):
    model = LoRAClassifier(encoder=tiny_encoder())
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder())
    trainer(tmp_path, precision=precision, callbacks=[PrecisionReport()], limit_val_batches=0).fit(model, data)
    return model


@pytest.mark.parametrize(("precision", "computed"), [("32-true", "fp32"), ("bf16-mixed", "bf16")])
def test_says_what_is_computed_in_which_type(precision, computed, tiny_encoder, glue_folder, tmp_path, capsys):
    model = fit(precision, tiny_encoder, glue_folder, tmp_path)
    assert f"matrix products in {computed}" in capsys.readouterr().err
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    ("precision", "has_bf16", "slow"),
    [("bf16-mixed", False, True), ("bf16-mixed", True, False), ("32-true", False, False)],
)
def test_says_that_bf16_is_slow_where_it_is(
    precision, has_bf16, slow, tiny_encoder, glue_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(precision_report, "cpu_has_bf16", lambda: has_bf16)
    fit(precision, tiny_encoder, glue_folder, tmp_path)
    assert ("this CPU has no bf16 arithmetic" in capsys.readouterr().err) == slow


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_stops_a_run_that_trains_in_half_precision(precision, tiny_encoder, glue_folder, tmp_path):
    with pytest.raises(UserError, match=r"^trainer\.precision: "):
        fit(precision, tiny_encoder, glue_folder, tmp_path)


@pytest.mark.parametrize(
    ("precision", "device", "scaled", "fails"),
    [
        ("16-mixed", "cuda", True, False),
        ("16-mixed", "cuda", False, True),
        ("16-mixed", "cpu", True, True),
        ("bf16-mixed", "cuda", True, True),
        ("bf16-mixed", "cpu", False, False),
        ("32-true", "cpu", False, False),
    ],
)
def test_losses_are_scaled_where_it_belongs(precision, device, scaled, fails):
    if fails:
        with pytest.raises(UserError, match=r"^trainer\.precision: "):
            check_loss_scaling(precision, device, scaled)
    else:
        check_loss_scaling(precision, device, scaled)


def test_half_precision_moments_are_an_error():
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    check_optimizer_state(optimizer)
    optimizer.state[parameter]["exp_avg"] = torch.zeros(2, dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"^trainer\.precision: "):
        check_optimizer_state(optimizer)


def test_computed_type_follows_autocast(tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder())
    assert computed_type(model) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert computed_type(model) == torch.bfloat16


@pytest.mark.parametrize("variant", VARIANTS)
def test_computed_type_draws_no_random_numbers(variant, tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder(), lora={"variant": variant, "lora_dropout": 0.5}).train()
    before = torch.get_rng_state()
    assert computed_type(model) == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bf16-mixed"), ({"amx_bf16": True}, "bf16-mixed"), ({"avx2": True}, "32-true")],
)
def test_default_precision_of_a_cpu(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert default_precision("cpu") == expected
    assert cpu_has_bf16() == (expected == "bf16-mixed")


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_default_precision_of_a_gpu(bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert default_precision("auto") == default_precision("gpu") == expected
