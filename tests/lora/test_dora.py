import torch
from torch import nn

from lora_pl.lora import LoRAConfig
from lora_pl.lora.dora import DoRA
from tests.support import assert_equal_to_rounding


def trained(rows: int = 8, columns: int = 12) -> tuple[nn.Linear, DoRA]:
    base = nn.Linear(columns, rows)
    adapter = DoRA(base, LoRAConfig(r=3, lora_alpha=2, variant="dora"))
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    return base.double(), adapter.double()


def test_the_merged_weight_is_the_papers_formula():
    """W = m (W0 + s B A) / ||W0 + s B A||, with the out x in product (Liu et al., 2024, equation 5)."""
    base, adapter = trained()
    adapter.base_norm.copy_(base.weight.square().sum(1))
    direction = base.weight + 2 / 3 * adapter.lora_B @ adapter.lora_A
    expected = adapter.lora_magnitude_vector[:, None] * direction / direction.norm(dim=1, keepdim=True)
    assert_equal_to_rounding(adapter.merged(base.weight, torch.float64), expected, 3 * 12)


def test_the_norm_is_a_constant_in_the_backward():
    """Section 4.3: the gradient of A and B is that of LoRA, scaled by m / ||W0 + s B A||."""
    base, adapter = trained()
    a, b, _, gain = adapter.factors(base.weight, torch.float64)
    (gain * torch.arange(8)).sum().backward()
    assert adapter.lora_A.grad is None
    assert adapter.lora_B.grad is None
    assert adapter.lora_magnitude_vector.grad is not None
    assert a.requires_grad
    assert b.requires_grad


def test_a_row_of_zeros_gives_zeros():
    base = nn.Linear(12, 8)
    nn.init.zeros_(base.weight[3])
    adapter = DoRA(base, LoRAConfig(r=3, variant="dora"))
    assert torch.equal(adapter.merged(base.weight), base.weight)
