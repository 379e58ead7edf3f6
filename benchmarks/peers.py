"""What is compared: a training step and a prediction, each as its users would write them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.device import CPU, Device
from lora_pl.data.batches import make_batch
from lora_pl.data.tokens import Tokens
from lora_pl.encoder.dtype import quantize_frozen
from lora_pl.encoder.loading import build_encoder, load_config, load_tokenizer
from lora_pl.model.classifier import LoRAClassifier

PADDED_TO = 64
Step = Callable[[Tokens, Sequence[int]], Tensor]
"""A training step on chosen sentences; the loss."""


def random_encoder(folder: Path) -> str:
    """A folder with the encoder of `folder`'s configuration, weights drawn at random where it has none."""
    if (folder / "model.safetensors").is_file():
        return str(folder)
    place = Path(tempfile.gettempdir()) / f"lora_pl_benchmark_{folder.name}"
    if not (place / "model.safetensors").is_file():
        torch.manual_seed(0)
        build_encoder(load_config(str(folder))).save_pretrained(place)
        load_tokenizer(str(folder)).save_pretrained(place)
    return str(place)


def lora_pl_step(
    encoder: str,
    dtype: str,
    method: str = "lora",
    batching: str = "packed",
    dropout: float | None = None,
    quantized: bool = False,
    graphs: bool = False,
    device: Device = CPU,
) -> Step:
    """This package: the classifier's own forward and loss; `quantized` has the base's linear layers in int8."""
    base_dtype = dtype if method == "lora" and not quantized else "auto"
    model = LoRAClassifier(encoder=encoder, method=method, base_dtype=base_dtype, dropout=dropout).train()
    if quantized:
        quantize_frozen(model.encoder, getattr(torch, dtype))
    update = _update(model.to(device.name), 1e-4, dtype, device, fused=True)
    if graphs:
        model.base.use_graphs()

    def step(tokens: Tokens, indices: Sequence[int]) -> Tensor:
        pad = model.tokenizer.pad_token_id
        batch = make_batch(tokens, indices, batching, pad).filled(pad).to(device.name)
        with _autocast(dtype, device):
            loss = F.cross_entropy(model(batch), batch.labels.long())
        return update(loss)

    return step


def original_step(encoder: str, dtype: str, device: Device = CPU) -> Step:
    """The original repository's recipe: padded to 64, the update computed beside each frozen layer, weights in fp32."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(encoder, dtype=torch.float32, add_pooling_layer=False)
    model.requires_grad_(False).train()
    for layer in model.encoder.layer:
        layer.attention.self.query = PlainLoRA(layer.attention.self.query)
        layer.attention.self.value = PlainLoRA(layer.attention.self.value)
    head = nn.Linear(model.config.hidden_size, 2)
    update = _update(nn.ModuleList([model, head]).to(device.name), 1e-4, dtype, device)

    def step(tokens: Tokens, indices: Sequence[int]) -> Tensor:
        batch = make_batch(tokens, indices, "padded", model.config.pad_token_id).to(device.name)
        missing = (0, PADDED_TO - batch.input_ids.shape[1])
        ids = F.pad(batch.input_ids, missing, value=model.config.pad_token_id)
        with _autocast(dtype, device):
            hidden = model(input_ids=ids, attention_mask=F.pad(batch.attention_mask, missing)).last_hidden_state
            loss = F.cross_entropy(head(hidden[:, 0]).float(), batch.labels.long())
        return update(loss)

    return step


class PlainLoRA(nn.Module):
    """y = base(x) + (alpha / r) x A^T B^T, as the formula stands."""

    def __init__(self, base: nn.Linear, r: int = 4, alpha: float = 16) -> None:
        super().__init__()
        self.base, self.scaling = base, alpha / r
        self.A = nn.Parameter(torch.randn(r, base.in_features) * 0.02)
        self.B = nn.Parameter(torch.zeros(base.out_features, r))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.A.T @ self.B.T * self.scaling


def peft_step(encoder: str, dtype: str, weights: torch.dtype = torch.float32, device: Device = CPU) -> Step:
    """PEFT in a plain loop, padded to the batch's longest; `weights` is what the base is loaded in."""
    return _transformers_step(peft_model(encoder, weights), 1e-4, dtype, device)


def full_step(encoder: str, dtype: str, device: Device = CPU) -> Step:
    """Full fine-tuning in a plain loop, padded to the batch's longest."""
    return _transformers_step(_sequence_classifier(encoder, torch.float32), 1e-5, dtype, device)


def peft_model(encoder: str, weights: torch.dtype) -> nn.Module:
    """PEFT's model with r = 4 on query and value and Transformers' head."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=16, target_modules=["query", "value"])
    return get_peft_model(_sequence_classifier(encoder, weights), config)


def peak_memory(make: Callable[[], Step], tokens: Tokens, batches: Sequence[Sequence[int]]) -> float:
    """MiB that a peer's steps need at their peak beyond the libraries, in a process of its own (Linux)."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_memory, make, tokens, batches).result()


def _peak_memory(make: Callable[[], Step], tokens: Tokens, batches: Sequence[Sequence[int]]) -> float:
    import peft  # noqa: F401  the libraries of every peer, so that all start alike

    return step_and_peak(make, tokens, batches, CPU)[1]


def step_and_peak(
    make: Callable[[], Step], tokens: Tokens, batches: Sequence[Sequence[int]], device: Device
) -> tuple[Step, float]:
    """A peer's step, and MiB that its steps need at their peak beyond what was in use before it was made."""
    before = device.used()
    step = make()
    step(tokens, batches[0])
    device.forget_peak()  # loading is left out
    for indices in batches:
        step(tokens, indices)
    return step, device.peak() - before


def _sequence_classifier(encoder: str, weights: torch.dtype) -> nn.Module:
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    return AutoModelForSequenceClassification.from_pretrained(encoder, dtype=weights, num_labels=2)


def _transformers_step(model: nn.Module, rate: float, dtype: str, device: Device) -> Step:
    update = _update(model.train().to(device.name), rate, dtype, device)

    def step(tokens: Tokens, indices: Sequence[int]) -> Tensor:
        batch = make_batch(tokens, indices, "padded", model.config.pad_token_id).to(device.name)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        with _autocast(dtype, device):
            loss = model(**inputs, labels=batch.labels.long()).loss
        return update(loss)

    return step


def _autocast(dtype: str, device: Device) -> torch.autocast:
    half = dtype in ("bfloat16", "float16")
    return torch.autocast(device.name, getattr(torch, dtype) if half else torch.bfloat16, enabled=half)


def _update(
    model: nn.Module, rate: float, dtype: str, device: Device, fused: bool | None = None
) -> Callable[[Tensor], Tensor]:
    """AdamW's step on a loss, which is scaled in fp16; fused as in `lora_pl fit`, else as PyTorch chooses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, fused=fused)
    scaler = torch.amp.GradScaler(device.name, enabled=dtype == "float16")

    def update(loss: Tensor) -> Tensor:
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return update
