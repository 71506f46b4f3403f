"""Block-local training of deep networks on Ray: the Python API.

`fit(model, data, rule=..., blocks=...)` trains an `nn.Sequential`, `arrays_dataset` makes its data,
`load(run).predict(x)` uses what was trained, and `UserError` is what bad input raises. An
`Observer` hears how training goes, and may raise `StopTraining`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blocklocal.api import fit
    from blocklocal.loading import load
    from blocklocal.result import Result
    from learning.data import Dataset, arrays_dataset
    from learning.errors import UserError
    from orchestrator.trainer import Observer, StopTraining

__all__ = [
    "Dataset",
    "Observer",
    "Result",
    "StopTraining",
    "UserError",
    "arrays_dataset",
    "fit",
    "load",
]

_HOMES = {
    "Dataset": "learning.data",
    "Observer": "orchestrator.trainer",
    "Result": "blocklocal.result",
    "StopTraining": "orchestrator.trainer",
    "UserError": "learning.errors",
    "arrays_dataset": "learning.data",
    "fit": "blocklocal.api",
    "load": "blocklocal.loading",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: the command starts its cluster while PyTorch is imported."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
