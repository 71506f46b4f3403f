"""Block-local training of deep networks on Ray: the Python API.

`fit(model, data, rule=..., blocks=...)` trains an `nn.Sequential`, `arrays_dataset` makes its data,
and `UserError` is what bad input raises.
"""

from blocklocal.api import fit
from blocklocal.training import Result
from learning.data import Dataset, arrays_dataset
from learning.errors import UserError

__all__ = ["Dataset", "Result", "UserError", "arrays_dataset", "fit"]
