"""What differs between encoders, one row per `model_type` of Transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lora_pl.errors import UserError
from lora_pl.lora import LoRAConfig
from lora_pl.lora.names import any_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class StockHead:
    r"""The head of Transformers' `...ForSequenceClassification`, on the first token's feature h.

    .. math:: z = \mathrm{out}(\mathrm{dropout}(\mathrm{norm}(f(\mathrm{dense}(\mathrm{dropout}(h))))))

    Dropout on h and the norm exist if the row names them. Layers are named as in the stock model's state, probabilities
    by settings of the configuration, of which the first that is not None counts.
    """

    dense: str = "classifier.dense"
    out_proj: str = "classifier.out_proj"
    norm: str | None = None
    """A LayerNorm with the configuration's `norm_eps` and `norm_bias`."""
    modules: tuple[str, ...] = ("classifier",)
    """The modules that hold the head, as PEFT's `modules_to_save` names them."""
    activation: str = "tanh"
    """f's name in Transformers, or the setting that holds it."""
    dropout: tuple[str, ...] = ("classifier_dropout", "hidden_dropout_prob")
    input_dropout: tuple[str, ...] = ()
    """On h."""
    dense_bias: str | None = None
    """The setting that says whether `dense` has a bias; None if it always has."""
    pretrained: tuple[str, ...] = ()
    """The layers that the base's weights may hold (BERT's pooler)."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the configuration must say for the stock model to read the first token."""

    @property
    def layers(self) -> dict[str, str]:
        """The stock model's names of `dense`, `out_proj` and, if there is one, `norm`."""
        return {"dense": self.dense, "out_proj": self.out_proj, **({"norm": self.norm} if self.norm else {})}

    @property
    def can_be_linear(self) -> bool:
        """Whether some weights make it linear in h, as tanh is the identity on small numbers."""
        return self.activation == "tanh" and self.norm is None

    def activation_name(self, config: PretrainedConfig) -> str:
        """f's name in Transformers' table of activations."""
        return str(getattr(config, self.activation, self.activation))

    def probability(self, config: PretrainedConfig, names: tuple[str, ...]) -> float:
        """The first of the settings `names` that is not None, else 0."""
        return next((float(p) for name in names if (p := getattr(config, name, None)) is not None), 0.0)


@dataclass(frozen=True)
class Architecture:
    """How an encoder is built.

    A packed architecture attends through Transformers' AttentionInterface, which hands a layer's local window to the
    attention function (`sliding_window`), and takes `position_ids`.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    """By role (query, key, value, attention_output, mlp_up, mlp_down): the target that matches exactly its layers.

    Together they are all linear layers of a block."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By the name of a linear layer that computes several roles at once: their names, in equal parts of its rows."""
    positions_after_padding: bool = False
    """Whether positions are pad_token_id + 1, pad_token_id + 2, ..."""
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    """The configuration's settings of all dropout in the encoder."""
    packed: bool = False
    """Whether sentences may lie in one row without padding."""
    reads_back: bool = False
    """Whether its forward pass reads numbers back from the device, which no CUDA graph can."""
    blocks: str | None = None
    """The list of blocks, if the last one can drop the rows that nothing reads: its `attention.output` takes
    (attention's output, residual), and what follows works row by row. None if every row must go through it."""
    head: StockHead | None = None
    """None if Transformers' class for sentences has another kind of head; then it is linear."""
    shares_batches: bool = True
    """Whether a batch may mix adapters: its adapted layers see nothing but rows of sentences."""

    @property
    def targets(self) -> dict[str, str]:
        """By role, and by group of roles (attention, mlp, all-linear): the target that matches exactly its layers."""
        mlp = [role for role in self.roles if role.startswith("mlp_")]
        groups = {"attention": [role for role in self.roles if role not in mlp], "mlp": mlp, "all-linear": self.roles}
        found = {name: any_of(self.roles[role] for role in roles) for name, roles in groups.items() if roles}
        return {"all-linear": IN_BLOCKS, **found, **self.roles}

    def first_position(self, config: PretrainedConfig) -> int:
        """The position id of a sentence's first token."""
        return int(config.pad_token_id) + 1 if self.positions_after_padding else 0

    def has_token_types(self, config: PretrainedConfig) -> bool:
        """Whether `token_type_ids` mark the second text of a pair."""
        return int(getattr(config, "type_vocab_size", 0)) > 1


IN_BLOCKS = r".*\.\d+\..*|.*embed.*"
"""Matches the layers of blocks and embeddings, which poolers and heads are not."""
QUERY_KEY_VALUE = {"query": "query", "key": "key", "value": "value"}
BLOCK_ROLES = {
    "attention_output": "attention.output.dense",
    "mlp_up": "intermediate.dense",
    "mlp_down": r"encoder\.layer\.\d+\.output\.dense",
}
IN_CLASSIFIER = StockHead(input_dropout=("classifier_dropout", "hidden_dropout_prob"))
BERT = Architecture(
    roles=QUERY_KEY_VALUE | BLOCK_ROLES,
    packed=True,
    blocks="encoder.layer",
    head=StockHead("bert.pooler.dense", "classifier", modules=("classifier", "pooler"), pretrained=("dense",)),
)
ROBERTA = replace(BERT, positions_after_padding=True, head=IN_CLASSIFIER)

ARCHITECTURES: dict[str, Architecture] = {
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "xlm-roberta-xl": ROBERTA,
    "camembert": ROBERTA,
    "data2vec-text": ROBERTA,
    "xmod": replace(ROBERTA, reads_back=True),
    "bert": BERT,
    "electra": replace(BERT, head=replace(IN_CLASSIFIER, activation="gelu")),
    "distilbert": Architecture(
        roles={
            "query": "q_lin",
            "key": "k_lin",
            "value": "v_lin",
            "attention_output": "out_lin",
            "mlp_up": "lin1",
            "mlp_down": "lin2",
        },
        dropouts=("dropout", "attention_dropout"),
        packed=True,
        head=StockHead(
            "pre_classifier",
            "classifier",
            modules=("classifier", "pre_classifier"),
            activation="relu",
            dropout=("seq_classif_dropout",),
        ),
    ),
    "modernbert": Architecture(
        roles=QUERY_KEY_VALUE | {"attention_output": "attn.Wo", "mlp_up": "mlp.Wi", "mlp_down": "mlp.Wo"},
        fused={"attn.Wqkv": ("query", "key", "value")},
        dropouts=("embedding_dropout", "attention_dropout", "mlp_dropout"),
        packed=True,
        head=StockHead(
            "head.dense",
            "classifier",
            norm="head.norm",
            modules=("classifier", "head"),
            activation="classifier_activation",
            dropout=("classifier_dropout",),
            dense_bias="classifier_bias",
            pretrained=("dense", "norm"),
            settings={"classifier_pooling": "cls"},
        ),
    ),
    "deberta-v2": Architecture(  # DeBERTa v3 too
        roles={"query": "query_proj", "key": "key_proj", "value": "value_proj"} | BLOCK_ROLES,
        head=StockHead(
            "pooler.dense",
            "classifier",
            modules=("classifier", "pooler"),
            activation="pooler_hidden_act",
            dropout=("cls_dropout", "hidden_dropout_prob"),
            input_dropout=("pooler_dropout",),
        ),
        shares_batches=False,  # query and key are also applied to the relative positions
    ),
    "mpnet": Architecture(
        roles={"query": "attn.q", "key": "attn.k", "value": "attn.v"} | BLOCK_ROLES | {"attention_output": "attn.o"},
        positions_after_padding=True,
        head=replace(IN_CLASSIFIER, dropout=("hidden_dropout_prob",), input_dropout=("hidden_dropout_prob",)),
    ),
}

OTHERS = Architecture(dropouts=tuple(dict.fromkeys(name for row in ARCHITECTURES.values() for name in row.dropouts)))
"""What holds of any bidirectional encoder: padded batches, layers by their own names, a linear head."""

LIKE_ROBERTA = dict.fromkeys(
    ("ibert", "longformer", "luke", "roberta-prelayernorm"), replace(OTHERS, positions_after_padding=True)
)
"""Those of them that count positions as RoBERTa does."""


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The row of the configuration's `model_type`, `OTHERS` if there is none."""
    return ARCHITECTURES.get(config.model_type) or LIKE_ROBERTA.get(config.model_type, OTHERS)


def stock_head(config: PretrainedConfig) -> StockHead:
    """The architecture's own head.

    Raises:
        UserError: model.head: it is not known.
    """
    head = architecture_of(config).head
    if head is None:
        known = ", ".join(name for name, row in ARCHITECTURES.items() if row.head)
        raise UserError(
            "model.head", f"architecture is known for {known}, not for {config.model_type}; to train take linear"
        )
    return head


def require_shared_batches(config: PretrainedConfig) -> None:
    """Raise a UserError: model.encoder: an adapted layer sees what belongs to no sentence, and so to no adapter."""
    if not architecture_of(config).shares_batches:
        raise UserError(
            "model.encoder",
            f"{config.model_type} also applies its layers to relative positions, which all sentences of a batch share, "
            "so adapters can't share a batch; load each checkpoint as a LoRAClassifier",
        )


def module_names(lora: LoRAConfig, config: PretrainedConfig) -> LoRAConfig:
    """`lora` with every role (`query`, `mlp_up`) and group (`mlp`) replaced by the target that matches its layers."""
    names = architecture_of(config).targets
    return replace(
        lora,
        target_modules=tuple(names.get(target, target) for target in lora.target_modules),
        exclude=tuple(names.get(target, target) for target in lora.exclude),
        rank_pattern={names.get(name, name): r for name, r in lora.rank_pattern.items()},
        alpha_pattern={names.get(name, name): alpha for name, alpha in lora.alpha_pattern.items()},
    )
