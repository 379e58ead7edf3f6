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

from lora_pl.data.batches import Batch, make_batch
from lora_pl.data.tokens import Tokens
from lora_pl.encoder.loading import build_encoder, load_config, load_tokenizer
from lora_pl.model.classifier import LoRAClassifier

PADDED_TO = 64
Step = Callable[[Tokens, Sequence[int]], float]


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


def lora_pl_step(encoder: str, dtype: str, method: str = "lora", batching: str = "packed") -> Step:
    """This package: the classifier's own forward and loss."""
    model = LoRAClassifier(encoder=encoder, method=method, base_dtype=dtype if method == "lora" else "auto").train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(tokens: Tokens, indices: Sequence[int]) -> float:
        pad = model.tokenizer.pad_token_id
        batch = make_batch(tokens, indices, batching, pad).filled(pad)
        with _autocast(dtype):
            loss = F.cross_entropy(model(batch), batch.labels.long())
        return _optimize(optimizer, loss)

    return step


def original_step(encoder: str, dtype: str) -> Step:
    """The original repository's recipe: padded to 64, the update computed beside each frozen layer, weights in fp32."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(encoder, dtype=torch.float32, add_pooling_layer=False)
    model.requires_grad_(False).train()
    for layer in model.encoder.layer:
        layer.attention.self.query = PlainLoRA(layer.attention.self.query)
        layer.attention.self.value = PlainLoRA(layer.attention.self.value)
    head = nn.Linear(model.config.hidden_size, 2)
    trained = [*(p for p in model.parameters() if p.requires_grad), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step(tokens: Tokens, indices: Sequence[int]) -> float:
        batch = _padded(tokens, indices, model.config.pad_token_id)
        missing = (0, PADDED_TO - batch.input_ids.shape[1])
        ids = F.pad(batch.input_ids, missing, value=model.config.pad_token_id)
        with _autocast(dtype):
            hidden = model(input_ids=ids, attention_mask=F.pad(batch.attention_mask, missing)).last_hidden_state
            loss = F.cross_entropy(head(hidden[:, 0]).float(), batch.labels.long())
        return _optimize(optimizer, loss)

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


def peft_step(encoder: str, dtype: str, weights: torch.dtype = torch.float32) -> Step:
    """PEFT in a plain loop, padded to the batch's longest; `weights` is what the base is loaded in."""
    model = peft_model(encoder, weights).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    return _transformers_step(model, optimizer, dtype)


def full_step(encoder: str, dtype: str) -> Step:
    """Full fine-tuning in a plain loop, padded to the batch's longest."""
    model = _sequence_classifier(encoder, torch.float32).train()
    return _transformers_step(model, torch.optim.AdamW(model.parameters(), lr=1e-5), dtype)


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

    before = status("VmRSS")
    step = make()
    step(tokens, batches[0])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: loading is left out
    for indices in batches:
        step(tokens, indices)
    return status("VmHWM") - before


def status(field: str) -> float:
    """A line of `/proc/self/status`, in MiB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _sequence_classifier(encoder: str, weights: torch.dtype) -> nn.Module:
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    return AutoModelForSequenceClassification.from_pretrained(encoder, dtype=weights, num_labels=2)


def _transformers_step(model: nn.Module, optimizer: torch.optim.Optimizer, dtype: str) -> Step:
    def step(tokens: Tokens, indices: Sequence[int]) -> float:
        batch = _padded(tokens, indices, model.config.pad_token_id)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        with _autocast(dtype):
            loss = model(**inputs, labels=batch.labels.long()).loss
        return _optimize(optimizer, loss)

    return step


def _padded(tokens: Tokens, indices: Sequence[int], pad_token_id: int) -> Batch:
    return make_batch(tokens, indices, "padded", pad_token_id)


def _autocast(dtype: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")


def _optimize(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
