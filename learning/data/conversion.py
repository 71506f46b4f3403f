"""What callers and files give as rows and labels, as arrays of the types that a `Split` holds.

What has one meaning is converted without loss; what may have two is refused with the fix.
"""

from __future__ import annotations

import numpy as np
import torch

from learning.data.words import reason
from learning.errors import UserError

_CHUNK = 1 << 20  # values worked on at a time
_FEW_ROWS = 16  # so few say nothing about how much a feature varies
_STEPS = 256  # of float32 that a feature's range must have: as many as a byte tells apart
_NOISE = 2.0**-40  # a range below this share of the values is rounding of a constant


def as_array(name: str, value: object) -> np.ndarray:
    """Read a tensor, nested lists or anything that NumPy takes as an array, without its device.

    Args:
        name: what to call it in errors.

    Returns:
        An array that may share its memory with `value`.

    Raises:
        UserError: when it is no array, has hidden or missing values, or holds Python objects.
    """
    try:
        if isinstance(value, torch.Tensor):
            array = _of_tensor(value)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], torch.Tensor):
            array = _of_tensor(torch.stack(tuple(value)))
        elif isinstance(value, list | tuple | np.ndarray | int | float) or hasattr(
            value, "__array__"
        ):
            array = _of_masked(name, value) if np.ma.isMA(value) else np.asarray(value)
        else:
            raise TypeError(f"it is a {type(value).__name__}")
    except UserError:
        raise
    except Exception as error:  # whatever a library raises whose arrays are no arrays
        raise UserError(
            f"{name} is no array of numbers ({reason(error)}): give a NumPy array, a dense tensor "
            "or lists of one length"
        ) from error
    if array.dtype.hasobject:
        raise UserError(
            f"{name} holds Python objects, not numbers: fill or drop missing values and give it "
            "one numeric type, such as float32 for rows and int64 for labels"
        )
    return array


def rows_of(name: str, value: object) -> np.ndarray:
    """Bring rows to uint8, float32 or float64, (N, D) or (N, C, H, W).

    Raises:
        UserError: for another shape or type.
    """
    x = as_array(name, value)
    if x.ndim not in (2, 4) or 0 in x.shape[1:]:
        fix = {1: "x[:, None] makes rows of one value", 3: "x[:, None] adds the channel of images"}
        fix = fix.get(x.ndim, "reshape it")
        raise UserError(f"{name} has the shape {x.shape}, not (N, D) or (N, C, H, W): {fix}")
    if x.ndim == 4:
        _check_channels_first(name, x.shape)
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "fb":
        raise UserError(
            f"{name} has the type {x.dtype}, not uint8 or float: use x.astype('uint8') for pixels "
            "of 0 to 255, which are scaled to [0, 1], or x.astype('float32')"
        )
    # What is double stays so: in 1e9 plus something float32 would round the something away.
    return x.astype(np.float32 if x.dtype.itemsize <= 4 else np.float64, copy=False)


def integers(name: str, value: object, first: int = 0) -> np.ndarray:
    """Bring labels to int64, (N,).

    Args:
        first: number of the first row in its file.

    Raises:
        UserError: for another shape or type, or a number beyond int64.
    """
    y = as_array(name, value)
    if y.ndim != 1 or y.dtype.kind not in "iub":
        names = y.dtype.kind not in "fc"
        fix = "np.searchsorted(np.unique(y_train), y)" if names else "y.astype('int64')"
        if y.ndim == 2:
            fix = "y[:, 0]" if y.shape[1] == 1 else "y.argmax(1), where each row has a single 1"
        raise UserError(
            f"{name} has the type {y.dtype} and shape {y.shape}, not integer and (N,): use {fix}"
        )
    large = y > np.iinfo(np.int64).max if y.dtype.kind == "u" else np.zeros(0)
    if large.any():
        row = int(np.argmax(large))
        raise UserError(
            f"{name} has the label {y[row]} in row {first + row}, which is no int64: number the "
            "classes from 0"
        )
    return y.astype(np.int64, copy=False)


def check_spread(x: np.ndarray) -> None:
    """Check that train rows which are not normalised still vary as float32.

    Args:
        x: finite, of a type of `rows_of`.

    Raises:
        UserError: when float32 is too coarse for a feature (a channel of images).
    """
    if x.dtype != np.float64 or len(x) < _FEW_ROWS:
        return
    low, high = np.full(x.shape[1], np.inf), np.full(x.shape[1], -np.inf)
    step = max(1, _CHUNK * len(x) // x.size)
    for start in range(0, len(x), step):
        chunk = x[start : start + step].reshape(-1, x.shape[1], x[0, 0].size)
        low = np.minimum(low, chunk.min(axis=(0, 2)))
        high = np.maximum(high, chunk.max(axis=(0, 2)))
    largest, extent = np.maximum(np.abs(low), np.abs(high)), high - low
    with np.errstate(over="ignore"):  # what is beyond float32 is refused with its row
        spacing = np.spacing(largest.astype(np.float32)).astype(np.float64)
    lost = (extent > _NOISE * largest) & (extent < _STEPS * spacing)
    if lost.any():
        k = int(np.argmax(lost))
        what = "channel" if x.ndim == 4 else "feature"
        raise UserError(
            f"{what} {k} of the train data varies from {low[k]:.10g} to {high[k]:.10g}, of which "
            f"float32, the type of networks, keeps steps of {spacing[k]:.2g}: set data.normalize "
            "to true, or subtract its mean and divide by its deviation before"
        )


def _of_tensor(tensor: torch.Tensor) -> np.ndarray:
    if tensor.is_quantized or tensor.layout != torch.strided:
        raise TypeError("it is a sparse or quantized tensor")
    if tensor.is_floating_point() and tensor.dtype not in (torch.float64, torch.float32):
        tensor = tensor.float()  # NumPy has no bfloat16; nothing is lost
    return tensor.numpy(force=True)


def _of_masked(name: str, value: object) -> np.ndarray:
    """The values of a masked array, none of which may be hidden."""
    masked = np.ma.asarray(value)
    if (hidden := np.ma.getmaskarray(masked)).any():
        row = int(np.argwhere(hidden)[0][0]) if hidden.ndim else 0
        raise UserError(f"{name} hides values by its mask, first in row {row}: fill or drop them")
    return masked.data


def _check_channels_first(name: str, shape: tuple[int, ...]) -> None:
    """Refuse what looks like channels last: nothing else would tell that rows are scrambled."""
    _, first, second, last = shape
    if last <= 4 < min(first, second):
        raise UserError(
            f"{name} has the shape {shape}, which looks like (N, H, W, C), but (N, C, H, W) is "
            f"read: use x.transpose(0, 3, 1, 2), or x.swapaxes(2, 3) if it has {first} channels"
        )
