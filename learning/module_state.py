"""The state of modules: what training goes on from, by the names of the original module.

    model.<name>       parameters and persistent buffers: what `state_dict` has and a file can hold
    hidden.<name>      buffers that `state_dict` leaves out (`persistent=False`)
    extra.<module>     what `get_extra_state` returned, as JSON; `extra.<module>:<i>` its tensors
    flags.evaluation   names of the modules in evaluation mode, as JSON
    flags.frozen       names of the parameters that do not learn, as JSON

Nothing is pickled: JSON is kept as a tensor of bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from learning.errors import UserError

_EXTRA = nn.modules.module._EXTRA_STATE_KEY_SUFFIX
_TENSOR = "tensor:"  # stands in JSON for the tensor of this number
Naming = Callable[[str], str]


def _same(name: str) -> str:
    return name


def module_state(module: nn.Module, naming: Naming = _same) -> dict[str, Tensor]:
    """The tensors of a module's state; they are its own, not copies.

    Args:
        naming: a tensor's or module's name in `module` to its name in the original one.

    Raises:
        UserError: for extra state that no file can hold without pickling.
    """
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if _is_extra(name):
            owner = naming(name).removesuffix(_EXTRA).removesuffix(".")
            state |= {f"extra.{n}": t for n, t in _encode(owner, value).items()}
        else:
            state[f"model.{naming(name)}"] = value
    state |= {f"hidden.{naming(name)}": buffer for name, buffer in hidden_buffers(module)}
    return state


def load_module_state(
    module: nn.Module, state: Mapping[str, Tensor], naming: Naming = _same
) -> None:
    """Load what `module_state` gave, of this module and perhaps others; tensors are copied.

    What a state of an earlier version lacks (`hidden`) stays as it is.
    """
    extra = {n.removeprefix("extra."): t for n, t in state.items() if n.startswith("extra.")}
    mine: dict[str, Any] = {}
    for name in module.state_dict():
        if _is_extra(name):
            owner = naming(name).removesuffix(_EXTRA).removesuffix(".")
            if owner in extra:
                mine[name] = _decode(owner, extra)
        else:
            mine[name] = state[f"model.{naming(name)}"]
    module.load_state_dict(mine)
    with torch.no_grad():
        for name, buffer in hidden_buffers(module):
            kept = state.get(f"hidden.{naming(name)}")
            if kept is not None:
                buffer.copy_(kept)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name: what a file of weights has."""
    return {name: t for name, t in module.state_dict().items() if not _is_extra(name)}


def hidden_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that `state_dict` leaves out, by name."""
    for prefix, owner in module.named_modules():
        for name in sorted(owner._non_persistent_buffers_set):
            buffer = owner._buffers.get(name)
            if buffer is not None:
                yield f"{prefix}.{name}" if prefix else name, buffer


class Modes:
    """The training modes of a module and all below it, as they were chosen.

    Modules may do more on `train` and `eval` than note it, so those are called, and only where the
    mode changes.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._chosen = [(m, m.training) for m in module.modules()]

    def train(self) -> None:
        """Bring every module into the mode in which it trains."""
        self._module.train()
        for module, training in self._chosen:  # parents come first
            if module.training != training:
                module.train(training)

    def evaluation(self) -> list[str]:
        """Names of the modules that stay in evaluation mode while the others train."""
        kept = {id(module) for module, training in self._chosen if not training}
        return [name for name, m in self._module.named_modules() if id(m) in kept]

    def choose(self, evaluation: list[str]) -> None:
        """Let the modules of these names stay in evaluation mode, and no others."""
        names = {id(m): name for name, m in self._module.named_modules()}
        self._chosen = [(m, names[id(m)] not in evaluation) for m, _ in self._chosen]


def as_json(value: Any) -> Tensor:
    """A value of JSON as a tensor of bytes."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def from_json(tensor: Tensor) -> Any:
    """The value that `as_json` was given."""
    return json.loads(bytes(tensor.tolist()))


def _is_extra(name: str) -> bool:
    return name.rpartition(".")[2] == _EXTRA


def _encode(owner: str, value: Any) -> dict[str, Tensor]:
    tensors: list[Tensor] = []

    def plain(part: Any) -> Any:
        if isinstance(part, Tensor):
            tensors.append(part)
            return f"{_TENSOR}{len(tensors) - 1}"
        if type(part) is dict and all(type(key) is str for key in part):
            return {key: plain(item) for key, item in part.items()}
        if type(part) is list:
            return [plain(item) for item in part]
        if type(part) is str and part.startswith(_TENSOR):
            raise TypeError(f"a text that begins with {_TENSOR!r}")
        if part is None or type(part) in (bool, int, float, str):
            return part
        raise TypeError(f"a {type(part).__name__}")

    try:
        encoded = {owner: as_json(plain(value))}
    except (TypeError, ValueError) as error:
        raise UserError(
            f"get_extra_state of {owner!r} returns {error}, which a checkpoint cannot hold: return "
            "tensors, finite numbers, texts, None, and lists and dicts of those"
        ) from error
    return encoded | {f"{owner}:{i}": tensor for i, tensor in enumerate(tensors)}


def _decode(owner: str, extra: Mapping[str, Tensor]) -> Any:
    def whole(part: Any) -> Any:
        if isinstance(part, str) and part.startswith(_TENSOR):
            return extra[f"{owner}:{part.removeprefix(_TENSOR)}"].clone()
        if isinstance(part, dict):
            return {key: whole(item) for key, item in part.items()}
        return [whole(item) for item in part] if isinstance(part, list) else part

    return whole(from_json(extra[owner]))
