"""What `inject_lora` puts where."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from lora_pl.lora.blocks import block_numbers
from lora_pl.lora.errors import LoRAError
from lora_pl.lora.names import matching, require_patterns
from lora_pl.lora.variants import VARIANTS

if TYPE_CHECKING:
    Variant = str
else:
    Variant = Literal[tuple(VARIANTS)]  # so that the command line lists them

Init = Literal["gaussian", "kaiming_uniform", "eva"]
Scaling = Literal["standard", "rslora"]
DIVISORS: dict[Scaling, Callable[[int], float]] = {"standard": float, "rslora": math.sqrt}
"""What alpha is divided by at rank r: r, or sqrt(r)."""
NAMES = ("target_modules", "exclude")
"""The fields that name layers."""
MOST_PATTERNS = 1000
"""Targets, or entries of a pattern: more than any encoder has linear layers to name."""

T = TypeVar("T")


def naming_fields(cls: type[T]) -> type[T]:
    """A dataclass whose TypeError at an argument that it does not have names the nearest field, or all."""
    init: Any = cls.__init__
    names = [known.name for known in fields(cls)]  # type: ignore[arg-type]

    @wraps(init)
    def checked(self: T, *args: Any, **given: Any) -> None:
        for name in given.keys() - {*names}:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(names)}"
            raise TypeError(f"{cls.__name__} has no {name}; {hint}")
        init(self, *args, **given)

    cls.__init__ = checked  # type: ignore[assignment, method-assign]
    return cls


@naming_fields
@dataclass(frozen=True)
class LoRAConfig:
    """Hyper-parameters of LoRA (Hu et al., 2021, Section 4.1).

    Raises:
        LoRAError: FIELD: a value of another type or out of range, or a pattern that is no regular expression.
    """

    r: int = 4
    """Rank of the update, at least 1: A is (r, in_features), B is (out_features, r)."""
    lora_alpha: float = 16.0
    """Numerator of the scale, such as alpha / r, that multiplies the update, above 0."""
    lora_dropout: float = 0.0
    """Probability of dropping an entry of the branch's input while training, in [0, 1)."""
    target_modules: tuple[str, ...] | str = ("query", "value")
    """Linear layers to adapt: the last parts of their names (`attention.self.query`) or regular expressions
    (RE2's) that match whole names. Every encoder of the table knows query, key, value, attention_output, mlp_up and
    mlp_down, and the groups attention, mlp and all-linear (both)."""
    init: Init = "gaussian"
    """How A starts: `gaussian` (std 0.02), `kaiming_uniform` (loralib's) or `eva` (what explains the layer's inputs on
    training data best; Paischer et al., 2024). B always starts at zero."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of layers that differ from r, by names as in target_modules; the first match counts."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """The same for lora_alpha."""
    variant: Variant = "lora"
    """LoRA itself or a variant of it; all take r, alpha, dropout and targets."""
    layers: tuple[int | str, ...] | int | str = ()
    """The blocks to adapt, counted from 0, as numbers or ranges (`6-11`, `[0, 3]`); by default all."""
    exclude: tuple[str, ...] | str = ()
    """Layers not to adapt, by names as in target_modules."""
    scaling: Scaling = "standard"
    """The scale of the update: `standard` (alpha / r) or `rslora` (alpha / sqrt(r); Kalajdzievski, 2023)."""
    lr_ratio: float = 1.0
    """B's learning rate over A's, which is the model's learning_rate (LoRA+; Hayou et al., 2024), above 0."""
    eva_rho: float = 1.0
    """With init eva, the most rank of a layer over r, at least 1. Above 1, EVA distributes the r x layers ranks by
    explained variance, each layer keeping its scale, and writes them as rank_pattern; a rank_pattern that is given
    stays."""
    eva_batches: int = 8
    """With init eva, the training batches that it looks at before the first step, at least 1."""

    def __post_init__(self) -> None:
        for name in NAMES:
            given = getattr(self, name)
            self._require(name, isinstance(given, str | list | tuple), "names or patterns")
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        self._require("target_modules", bool(self.target_modules), "names or patterns")
        object.__setattr__(self, "layers", block_numbers(self.layers))
        self._require("r", _is_rank(self.r), "an integer >= 1")
        self._require("lora_alpha", _is_positive(self.lora_alpha), "a number > 0")
        self._require("lr_ratio", _is_positive(self.lr_ratio), "a number > 0")
        self._require("lora_dropout", _is_number(self.lora_dropout) and 0 <= self.lora_dropout < 1,
                      "a probability in [0, 1)")  # fmt: skip
        self._require("init", self.init in get_args(Init), " or ".join(get_args(Init)))
        self._require("eva_rho", _is_positive(self.eva_rho) and self.eva_rho >= 1, "a number >= 1")
        self._require("eva_batches", _is_rank(self.eva_batches), "an integer >= 1")
        self._require("scaling", self.scaling in get_args(Scaling), "standard or rslora")
        self._require("variant", self.variant in tuple(VARIANTS), " or ".join(VARIANTS))
        of_variant = f"with variant {self.variant}, which trains no"
        trained = VARIANTS[self.variant]
        self._require("lr_ratio", self.lr_ratio == 1 or bool(trained.b_names()), f"1 {of_variant} B")
        self._require("init", self.init != "eva" or bool(trained.a_names()), f"gaussian {of_variant} A")
        self._require_values("rank_pattern", _is_rank, "integers >= 1 by name or pattern")
        self._require_values("alpha_pattern", _is_positive, "numbers > 0 by name or pattern")
        for name in (*NAMES, "rank_pattern", "alpha_pattern"):
            self._require(name, len(getattr(self, name)) <= MOST_PATTERNS, f"at most {MOST_PATTERNS:,}")
            require_patterns(name, getattr(self, name))

    def _require_values(self, field: str, holds: Callable[[object], bool], expected: str) -> None:
        patterns = getattr(self, field)
        self._require(field, isinstance(patterns, Mapping) and all(map(holds, patterns.values())), expected)

    def _require(self, field: str, holds: bool, expected: str) -> None:
        if not holds:
            raise LoRAError(field, f"expected {expected}, got {getattr(self, field)!r:.200}")

    @property
    def scale(self) -> float:
        """What multiplies the update: alpha / r, or alpha / sqrt(r)."""
        return self.lora_alpha / DIVISORS[self.scaling](self.r)

    def of_layers(self, names: Sequence[str]) -> dict[str, "LoRAConfig"]:
        """The configuration of each layer: its own rank and alpha, and nothing of other layers."""
        ranks, alphas = dict.fromkeys(names, self.r), dict.fromkeys(names, self.lora_alpha)
        for own, patterns in ((ranks, self.rank_pattern), (alphas, self.alpha_pattern)):
            for pattern, value in reversed(patterns.items()):  # the first match counts, a whole name before all
                own.update(dict.fromkeys(matching(names, pattern), value))  # type: ignore[arg-type]
            own.update((name, patterns[name]) for name in names if name in patterns)  # type: ignore[misc]
        plain = replace(self, rank_pattern={}, alpha_pattern={}, layers=(), exclude=())
        return {name: replace(plain, r=ranks[name], lora_alpha=alphas[name]) for name in names}

    @property
    def distributes_ranks(self) -> bool:
        """Whether the layers' ranks are left to EVA."""
        return self.init == "eva" and self.eva_rho > 1 and not self.rank_pattern

    def with_ranks(self, ranks: Mapping[str, int]) -> "LoRAConfig":
        """With these ranks of all adapted layers, by their full names, each at the scale that it has now."""
        alphas = {
            name: own.lora_alpha if own.r == ranks[name] else own.scale * DIVISORS[self.scaling](ranks[name])
            for name, own in self.of_layers(list(ranks)).items()
        }
        # the unchanged too: another layer's name may be the end of theirs
        return replace(self, rank_pattern=dict(ranks), alpha_pattern=alphas)

    def with_patterns_of(self, other: "LoRAConfig") -> "LoRAConfig":
        """With the ranks and alphas by layer of another configuration."""
        return replace(self, rank_pattern=other.rank_pattern, alpha_pattern=other.alpha_pattern)

    def to_dict(self) -> dict[str, Any]:
        """Primitive values only, as a checkpoint stores them; `LoRAConfig(**d)` reads them back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, value: "LoRAConfig | Mapping[str, Any]") -> "LoRAConfig":
        """`value` itself, or the configuration that a mapping of its fields describes."""
        return value if isinstance(value, cls) else cls(**dict(value))  # type: ignore[arg-type]


def _is_rank(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_positive(value: object) -> bool:
    return _is_number(value) and 0 < value < math.inf  # type: ignore[operator]


def _is_number(value: object) -> bool:
    """Whether it is a float, or an integer that fits into one."""
    return isinstance(value, float) or (type(value) is int and value.bit_length() <= 64)
