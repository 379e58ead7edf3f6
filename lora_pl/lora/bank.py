"""Many adapters on one frozen model, side by side in one forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from lora_pl.lora.bank_layer import BankLinear
from lora_pl.lora.config import LoRAConfig
from lora_pl.lora.errors import LoRAError
from lora_pl.lora.injection import layers_to_adapt, linear_layers, plain, replace_layers
from lora_pl.lora.layer import lora_layers
from lora_pl.lora.routing import Routes, Routing, require_known
from lora_pl.lora.state import copy_state


class AdapterBank:
    """Named adapters of any rank, alpha, targets and variant over the shared weights of one model.

    Within `route`, every sentence of a forward goes through its own adapter, or through the base alone:

    .. math:: y_t = x_t W_0^T + b + s_{k(t)} (x_t A_{k(t)}^T) B_{k(t)}^T, \\qquad s_k = \\alpha_k / r_k

    for LoRA itself, where k(t) is the adapter of the sentence that token t belongs to. The product with W_0 is computed
    once for all sentences; the A of all routed adapters are stacked, and each token keeps its own adapter's columns of
    the thin product. No adapter's result depends on another's sentences, inf and NaN included; nor does its gradient,
    under autocast or where base and adapters have one dtype.

    Threads may route different adapters at once, and add adapters meanwhile; an adapter that is loaded anew or removed
    waits for the forwards that use it, so a task of asyncio does that in a thread (`asyncio.to_thread`).

    Example:
        >>> bank = AdapterBank(nn.Sequential(nn.Linear(8, 8)))
        >>> bank.add("film", LoRAConfig(r=2, target_modules=("0",)))
        >>> bank.add("food", LoRAConfig(r=4, target_modules=("0",)))
        >>> with bank.route(["food", None, "film"], lengths=[3, 1, 2]):
        ...     bank.model(torch.zeros(1, 6, 8)).shape
        torch.Size([1, 6, 8])

    Args:
        model: Its layers are replaced as adapters need them.

    Raises:
        LoRAError: model: LoRA is injected already.
    """

    def __init__(self, model: nn.Module) -> None:
        if lora_layers(model) or any(isinstance(module, BankLinear) for module in model.modules()):
            raise LoRAError("model", "LoRA is injected in this model already; call remove_lora(model) first")
        self.model = model
        self.configs: dict[str, LoRAConfig] = {}
        """Rank, alpha and the rest by the adapter's name, in the order of adding."""
        self._routes = Routes()

    @property
    def names(self) -> list[str]:
        """The adapters, in the order of adding."""
        return list(self.configs)

    @property
    def layers(self) -> dict[str, BankLinear]:
        """The layers that some adapter is in, by name."""
        with self._routes.lock:
            return {name: module for name, module in self.model.named_modules() if isinstance(module, BankLinear)}

    def add(self, name: str, config: LoRAConfig, state: Mapping[str, Tensor] | None = None) -> None:
        """Add an adapter, drawn as `inject_lora` draws it, or with the tensors of `state`.

        Args:
            name: What `route` calls it.
            config: Its rank, alpha, dropout, targets and initialization.
            state: As `adapter_state_dict` gives it for this model with LoRA of the same configuration injected, by
                full name (`encoder.layer.0.attention.self.query.lora_A`).

        Raises:
            LoRAError: adapter (the name is taken), state (see `load`), or a field that does not fit the model (see
                `inject_lora`). The bank is then unchanged.
        """
        with self._routes.changing(name):
            if name in self.configs:
                raise LoRAError("adapter", f"there is an adapter {name!r} already; give another name, or remove it")
            linear = linear_layers(self.model, (nn.Linear, BankLinear))
            places = layers_to_adapt(linear, config)
            plain_ones = [linear[place] for place in places if not isinstance(linear[place], BankLinear)]
            try:
                replace_layers(self.model, {layer: BankLinear(layer, self._routes) for layer in plain_ones})
                layers = self.layers
                for place, own in places.items():
                    layers[place].add(name, own)
                if state is not None:
                    self._load(name, state)
            except BaseException:
                self._remove(name)
                raise
            self.configs[name] = config  # the last step: from now on it can be routed

    def remove(self, name: str) -> None:
        """Remove an adapter; a layer left without one becomes a plain `nn.Linear` again."""
        with self._routes.changing(name):
            self._require(name)
            del self.configs[name]
            self._remove(name)

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """An adapter's tensors, as `adapter_state_dict` gives them; they share the bank's memory."""
        self._require(name)
        return {key: parameter.detach() for key, parameter in self._named(name).items()}

    def load(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Copy `state` into an adapter, the reverse of `state_dict`.

        Raises:
            LoRAError: state: keys that are missing, unexpected or of another shape, or numbers that are inf or NaN, in
                the base's dtype and multiplied by the scale too; nothing is copied then.
        """
        with self._routes.changing(name):
            self._require(name)
            self._load(name, state)

    def adapters(self, name: str) -> nn.ModuleList:
        """An adapter's parts, one per layer that it is in."""
        self._require(name)
        return nn.ModuleList(layer.adapter(name) for layer in self.layers.values() if name in layer)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """An adapter's parameters."""
        return list(self.adapters(name).parameters())

    @contextmanager
    def route(self, adapters: Sequence[str | None], lengths: Sequence[int]) -> Iterator[None]:
        """Within the context, segment i of a forward goes through `adapters[i]`; None is the base alone.

        Args:
            adapters: A name per segment, in any order; a name may come several times.
            lengths: Tokens per segment. A segment is a sentence. Neighbours with the same adapter may form one segment
                if no layer sees a row per sentence (first tokens alone, or a padded batch).
        """
        with self._routes.taken(Routing(tuple(adapters), tuple(lengths)), self.configs):
            yield

    def _remove(self, name: str) -> None:
        for layer in self.layers.values():
            layer.remove(name)
        replace_layers(self.model, {layer: plain(layer) for layer in self.layers.values() if not layer.adapters})

    def _load(self, name: str, state: Mapping[str, Tensor]) -> None:
        own = self._named(name)
        before = {key: parameter.detach().clone() for key, parameter in own.items()}
        try:
            copy_state(own, state)
            self._require_finite(name)
        except BaseException:
            copy_state(own, before)
            raise

    def _require_finite(self, name: str) -> None:
        for place, layer in self.layers.items():
            if name in layer and not layer.is_finite(name):
                dtype = str(layer.weight.dtype).removeprefix("torch.")
                raise LoRAError("state", f"the adapter {name!r} has inf or NaN in {dtype}, the base's dtype: {place}")

    def _named(self, name: str) -> dict[str, nn.Parameter]:
        return {
            f"{place}.{own}": parameter
            for place, layer in self.layers.items()
            if name in layer
            for own, parameter in layer.adapter(name).tensors().items()
        }

    def _require(self, name: str) -> None:
        require_known([name], self.configs)
