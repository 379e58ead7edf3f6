"""What the share of the peak counts."""

import torch

from benchmarks.peak import step_products
from lora_pl import LoRAClassifier
from lora_pl.data.batches import Batch
from lora_pl.encoder import EMBEDDED


def test_products_count_what_is_computed():
    model = LoRAClassifier(encoder=EMBEDDED)
    shape = model.encoder.config
    h, f, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    batch = Batch(torch.zeros(1, 10), torch.zeros(1, 10), torch.zeros(2), (4, 6))
    full = 10 * (4 * h * h + 2 * h * f)
    last = 10 * 3 * h * h + 2 * (h * h + 2 * h * f)  # after attention two tokens are left
    forward = (layers - 1) * full + last
    assert step_products(model, batch) == 2 * forward
    assert step_products(LoRAClassifier(encoder=EMBEDDED, method="head"), batch) == forward
