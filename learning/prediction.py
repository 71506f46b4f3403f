"""A trained network with its preprocessing: scores and labels of raw rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learning.data.preprocessing import Preprocessing
from learning.data.raw_rows import raw_rows, seen
from learning.errors import UserError
from learning.numerics import Numerics, input_type
from learning.settings import PrecisionSettings


@dataclass(frozen=True)
class Trained:
    """A network and what it was trained to see.

    Attributes:
        model: the plain module; `predict` and `scores` run it in evaluation mode, wherever it is.
        preprocessing: None for weights of a version that did not keep it.
        precision: what it was trained in.
        batch: rows that are computed at a time.
        source: where the weights are from, for error messages.
    """

    model: nn.Module
    preprocessing: Preprocessing | None
    precision: PrecisionSettings
    batch: int
    source: str

    @property
    def known(self) -> Preprocessing:
        """The preprocessing.

        Raises:
            UserError: for weights of a version that did not keep it.
        """
        if self.preprocessing is None:
            raise UserError(
                f"{self.source} was written by a version that kept no preprocessing, so that raw "
                "rows cannot be brought to what it was trained on: train it again, or call its "
                "model with rows that are normalised as they were then"
            )
        return self.preprocessing

    def predict(self, x: Any) -> np.ndarray:
        """The labels of raw rows, with the greatest score: int64 (n,), or (n, T) of tokens.

        Raises:
            UserError: as `scores`.
        """
        return self.scores(x).argmax(-1)

    def scores(self, x: Any) -> np.ndarray:
        """The network's scores of raw rows, float32 or float64 (n, classes); no gradients.

        Args:
            x: an array, a tensor or lists, (n, *input_shape), as the rows of training were before
                anything was done to them. For a network of text also texts.

        Raises:
            UserError: for rows that are not such, or weights without preprocessing.
        """
        known = self.known
        rows = raw_rows(x, known)
        numerics = Numerics(self.precision, device_of(self.model))
        found, taken = [], input_type(self.model)
        with torch.no_grad(), evaluating(self.model):
            for start in range(0, len(rows), self.batch):
                part = seen(rows[start : start + self.batch], known)
                with numerics.autocast():
                    x = numerics.arrange(part)
                    scores = self.model(x.to(taken) if x.is_floating_point() else x)
                scores = scores if scores.dtype == torch.float64 else scores.float()
                found.append(scores.cpu())
        return torch.cat(found).numpy()

    def from_raw(self) -> FromRaw:
        """The network as a module that takes raw rows.

        Raises:
            UserError: for weights without preprocessing.
        """
        return FromRaw(self.model, self.known, input_type(self.model))

    def raw_example(self, rows: int = 2) -> Tensor:
        """Raw rows of zeros, of the type and shape that the network was trained on.

        Raises:
            UserError: for weights without preprocessing.
        """
        known = self.known
        kind = torch.int64 if known.tokens else getattr(torch, known.rows)
        return torch.zeros(rows, *known.input_shape, dtype=kind)


class FromRaw(nn.Module):
    """A network that takes raw rows: its preprocessing is a part of the graph when exported.

    Args:
        network: the plain module.
        dtype: of the numbers that it takes.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype):
        super().__init__()
        self.network, self.tokens, self.dtype = network, preprocessing.tokens, dtype
        for name, values in vars(preprocessing.arrays).items():
            self.register_buffer(name, torch.from_numpy(values.copy()))

    def forward(self, rows: Tensor) -> Tensor:
        """Scores of raw rows (n, *input_shape), with the bits that `Preprocessing.apply` gives."""
        if self.tokens:
            return self.network(rows)
        scale, mean, std = (self.get_buffer(name) for name in ("scale", "mean", "std"))
        x = (rows.to(mean.dtype) / scale - mean) / std
        return self.network(x.float().to(self.dtype))


def device_of(model: nn.Module) -> torch.device:
    """Where the weights of a module are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; each module goes back to its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
