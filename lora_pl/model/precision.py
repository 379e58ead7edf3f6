"""Devices, and the fastest precision of each."""

from typing import Any, Literal

import torch

from lora_pl.errors import UserError
from lora_pl.reporting import say

Precision = Literal[
    64, 32, 16, "64-true", "32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "64", "32", "16", "bf16",
    "transformer-engine", "transformer-engine-float16",
]  # fmt: skip
"""Lightning's names, as its options spell them."""
SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def full_name(precision: Any) -> str:
    """What Lightning calls it in full: 16-mixed for 16."""
    return SHORT.get(str(precision), str(precision))


def chosen_precision(given: Any, accelerator: Any) -> Any:
    """The given one, else the fastest, which is reported."""
    if given:
        return given
    found = default_precision(str(accelerator or "auto"))
    say(f"precision {found}, the fastest this device supports; --trainer.precision overrides it")
    return found


def default_precision(accelerator: str = "auto") -> Literal["bf16-mixed", "16-mixed", "32-true"]:
    """bf16-mixed where the GPU or the CPU has bf16 arithmetic, 16-mixed on older GPUs, else 32-true.

    Args:
        accelerator: Lightning's name of the accelerator; auto is the GPU where there is one.
    """
    device = device_of(accelerator)
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if device == "cpu" and cpu_has_bf16() else "32-true"


def device_of(accelerator: str) -> str | None:
    """cuda or cpu by Lightning's name of the accelerator; None for any other device."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    return "cpu" if accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()) else None


def require_precision(precision: str) -> None:
    """Raise a UserError, `trainer.precision`, for a precision in which adapters and head would not be fp32."""
    if precision.endswith("-true") and precision != "32-true":
        raise UserError(
            "trainer.precision",
            f"adapters and head are fp32, got {precision}; take bf16-mixed, 16-mixed or 32-true (the frozen weights' "
            "type is model.base_dtype)",
        )


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware (AVX512_BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
