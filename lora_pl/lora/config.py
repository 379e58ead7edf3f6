"""What `inject_lora` puts where."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from lora_pl.lora.errors import LoRAError
from lora_pl.lora.names import matches
from lora_pl.lora.variants import VARIANTS

if TYPE_CHECKING:
    Variant = str
else:
    Variant = Literal[tuple(VARIANTS)]  # so that the command line lists them

Init = Literal["gaussian", "kaiming_uniform"]


@dataclass(frozen=True)
class LoRAConfig:
    """Hyper-parameters of LoRA (Hu et al., 2021, Section 4.1).

    Raises:
        LoRAError: FIELD: a value out of range, or a pattern that is no regular expression.
    """

    r: int = 4
    """Rank of the update, at least 1: A is (r, in_features), B is (out_features, r)."""
    lora_alpha: float = 16.0
    """Numerator of the scaling alpha / r that multiplies the update, above 0."""
    lora_dropout: float = 0.0
    """Probability of dropping an entry of the branch's input while training, in [0, 1)."""
    target_modules: tuple[str, ...] = ("query", "value")
    """Linear layers to adapt: the last parts of their names (`attention.self.query`) or regular expressions that match
    whole names. Every encoder of the table knows query, key, value, attention_output, mlp_up and mlp_down."""
    init: Init = "gaussian"
    """How A starts: `gaussian` (std 0.02) or `kaiming_uniform` (loralib's). B always starts at zero."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of layers that differ from r, by names as in target_modules; the first match counts."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """The same for lora_alpha."""
    variant: Variant = "lora"
    """LoRA itself or a variant of it; all take r, alpha, dropout and targets."""

    def __post_init__(self) -> None:
        targets = self.target_modules
        object.__setattr__(self, "target_modules", (targets,) if isinstance(targets, str) else tuple(targets))
        self._require("r", isinstance(self.r, int) and not isinstance(self.r, bool) and self.r >= 1, "an integer >= 1")
        self._require("lora_alpha", 0 < self.lora_alpha < float("inf"), "a number > 0")
        self._require("lora_dropout", 0 <= self.lora_dropout < 1, "a probability in [0, 1)")
        self._require("init", self.init in ("gaussian", "kaiming_uniform"), "gaussian or kaiming_uniform")
        self._require("variant", self.variant in VARIANTS, " or ".join(VARIANTS))
        self._require("target_modules", bool(self.target_modules), "at least one name or pattern")
        for name in ("target_modules", "rank_pattern", "alpha_pattern"):
            self._require_patterns(name)
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            self.of_layer(pattern)  # its rank and alpha are in range

    def _require_patterns(self, field: str) -> None:
        for pattern in getattr(self, field):
            try:
                re.compile(pattern)
            except re.error as error:
                raise LoRAError(field, f"{pattern!r} is no regular expression: {error}") from None

    def _require(self, field: str, holds: bool, expected: str) -> None:
        if not holds:
            raise LoRAError(field, f"expected {expected}, got {getattr(self, field)!r}")

    @property
    def scaling(self) -> float:
        """alpha / r."""
        return self.lora_alpha / self.r

    def of_layer(self, name: str) -> "LoRAConfig":
        """The configuration of the layer `name`: its own rank and alpha, and no patterns."""
        if not self.rank_pattern and not self.alpha_pattern:
            return self
        r = next((rank for pattern, rank in self.rank_pattern.items() if matches(name, pattern)), self.r)
        alphas = self.alpha_pattern.items()
        alpha = next((alpha for pattern, alpha in alphas if matches(name, pattern)), self.lora_alpha)
        return replace(self, r=r, lora_alpha=alpha, rank_pattern={}, alpha_pattern={})

    def to_dict(self) -> dict[str, Any]:
        """Primitive values only, as a checkpoint stores them; `LoRAConfig(**d)` reads them back."""
        return {**asdict(self), "target_modules": list(self.target_modules)}

    @classmethod
    def of(cls, value: "LoRAConfig | Mapping[str, Any]") -> "LoRAConfig":
        """`value` itself, or the configuration that a mapping of its fields describes."""
        return value if isinstance(value, cls) else cls(**dict(value))  # type: ignore[arg-type]
