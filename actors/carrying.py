"""Units on their way to another process: what pickling alone would drop goes along.

Both engines train what arrives, never the user's own modules: what a module cannot take along is
the same in both, and a run that fails leaves the user's network as it was.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import cloudpickle
from torch import Tensor, nn
from torch.nn.utils import parametrize

from learning.errors import UserError, one_line
from learning.policies.gradient_hooks import Hook, attach, hooks_of
from learning.units import Unit


class Carried:
    """Units that arrive in another process as a list of units."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = list(units)

    def __reduce__(self) -> tuple[Callable[[bytes], list[Unit]], tuple[bytes]]:
        file = io.BytesIO()
        _dump(self.units, _Packer(file))
        return _arrived, (file.getvalue(),)


def carried_here(units: Sequence[Unit]) -> list[Unit]:
    """The units as another process would get them, but of the classes that are here.

    Unpickling a class where it was made would write over its methods.

    Raises:
        UserError: for what cannot go along.
    """
    file = io.BytesIO()
    packer = _PackerForHere(file)
    _dump(units, packer)
    file.seek(0)
    return _attached(*_UnpackerHere(file, packer.kinds).load())


def check_carried(units: Sequence[Unit], foreign: Mapping[int, str]) -> None:
    """Check that units can be sent to another process.

    Args:
        units: of one block.
        foreign: names of tensors, by id, that must not go along: they are of other blocks.

    Raises:
        UserError: for what cannot go along, or must not.
    """
    _dump(units, _Checker(foreign))


def _dump(units: Sequence[Unit], packer: _Packer) -> None:
    hooks = [
        (parameter, *both)
        for unit in units
        for parameter in unit.module.parameters()
        if any(both := hooks_of(parameter))
    ]
    try:
        packer.dump((list(units), hooks))
    except UserError:
        raise
    except Exception as error:  # a module may hold anything
        raise UserError(
            f"unit {_first_that_fails(units)} cannot be sent to another process "
            f"({one_line(str(error), 200)}): keep what cannot be pickled out of it and its hooks"
        ) from error


def _arrived(data: bytes) -> list[Unit]:
    """The units of `Carried`; the bytes are a part of what Ray unpickles."""
    return _attached(*cloudpickle.loads(data))


def _attached(
    units: list[Unit], hooks: Sequence[tuple[Tensor, list[Hook], list[Hook]]]
) -> list[Unit]:
    for parameter, before, after in hooks:
        attach(parameter, before, after)
    return units


class _Packer(cloudpickle.Pickler):
    """A pickler that takes parametrizations and slots along."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, nn.Module) and parametrize.is_parametrized(obj):
            # torch refuses to pickle these, because their class is made anew for each. Here it
            # goes along.
            return _whole(obj)
        if isinstance(obj, nn.Module) and _leaves_slots_out(type(obj)) and slots_of(obj):
            return _whole(obj)
        return super().reducer_override(obj)


class _PackerForHere(_Packer):
    """Leaves classes where they are.

    Attributes:
        kinds: classes by the number that stands for them.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.kinds: list[type] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, type):
            return None
        self.kinds.append(obj)
        return len(self.kinds) - 1


class _UnpackerHere(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, kinds: Sequence[type]) -> None:
        super().__init__(file)
        self._kinds = kinds

    def persistent_load(self, pid: Any) -> type:
        return self._kinds[pid]


class _Checker(_Packer):
    """Pickles all but the numbers of tensors, and refuses tensors of others."""

    def __init__(self, foreign: Mapping[int, str]) -> None:
        super().__init__(io.BytesIO())
        self._foreign = foreign

    def persistent_id(self, obj: Any) -> str | None:
        if not isinstance(obj, Tensor):
            return None
        if id(obj) in self._foreign:
            raise UserError(
                f"a unit refers to {self._foreign[id(obj)]}, which is in another block, by an "
                "attribute, a closure or a hook: move the boundary so that one block owns both, or "
                "keep a copy of the tensor"
            )
        return "tensor"


def slots_of(module: nn.Module) -> dict[str, Any]:
    """The values of a module's slots (`__slots__`), which are not in its `__dict__`."""
    names: list[str] = []
    for kind in type(module).__mro__:
        own = vars(kind).get("__slots__", ())
        names += [own] if isinstance(own, str) else own
    return {n: getattr(module, n) for n in names if not n.startswith("__") and hasattr(module, n)}


def _leaves_slots_out(kind: type[nn.Module]) -> bool:
    return kind.__getstate__ is nn.Module.__getstate__


def _whole(module: nn.Module) -> tuple[Any, ...]:
    state = vars(module).copy(), slots_of(module)
    return _new, (type(module),), state, None, None, _set_state


def _new(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


def _set_state(module: nn.Module, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    attributes, slots = state
    vars(module).update(attributes)
    for name, value in slots.items():
        object.__setattr__(module, name, value)


def _first_that_fails(units: Sequence[Unit]) -> str:
    for unit in units:
        try:
            _Checker({}).dump(unit)
        except Exception:
            return repr(unit.name)
    return repr(units[0].name)
