"""Block-local training of deep networks on Ray: the Python API.

`fit(model, data, rule=..., blocks=...)` trains an `nn.Sequential`; `load_dataset` and `arrays` make
data; `UserError` is what bad input raises.
"""

from blocklocal.training import Result, fit
from learning.data import Dataset, load_dataset
from learning.errors import UserError

__all__ = ["Dataset", "Result", "UserError", "fit", "load_dataset"]
