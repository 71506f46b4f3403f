"""A network as a model of MLflow, in its PyTorch flavor, written to a directory.

The format is that of `torch.export` (pt2): the graph as JSON and the weights as plain bytes. MLflow
could also pickle the module, which would run code of the file when it is read and break when a
class moves; or keep our code beside the weights, which a network of the user's would not be in. An
exported graph needs neither: `mlflow.pytorch.load_model` and `mlflow.pyfunc` read it with PyTorch
alone.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from learning.errors import UserError
from tuning.tracking import reason


def save_model(model: nn.Module, example_input: Tensor, directory: Path) -> None:
    """Write a model with its signature and an example; the module itself stays as it is.

    Args:
        example_input: (B, *shape) as the network takes it; the exported model takes any B.
        directory: must not exist.

    Raises:
        UserError: when the network cannot be exported.
    """
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # With one row `torch.export` would take the batch to be 1 always.
    rows = torch.cat([example_input, example_input])[:2].detach().cpu()
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            scores = model(rows)
        inputs, outputs = (
            Schema([TensorSpec(np.dtype(t.numpy().dtype), (-1, *t.shape[1:]))])
            for t in (rows, scores)
        )
        with _quietly():
            mlflow.pytorch.save_model(
                model,
                str(directory),
                signature=ModelSignature(inputs, outputs),
                input_example=rows.numpy(),
                serialization_format="pt2",
                # As asked, or MLflow would load the model in another process to see.
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
            )
    except Exception as error:  # of torch.export: whatever a forward pass may do
        raise UserError(
            f"the network cannot be exported for MLflow ({reason(error)}): take model.safetensors "
            "of the run, or write its forward pass without decisions that depend on data"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


class _quietly:  # noqa: N801 - reads as a phrase
    """Keep to itself what MLflow and PyTorch say about exporting."""

    def __enter__(self) -> None:
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore")
        self._loggers = [logging.getLogger(n) for n in ("mlflow", "torch.export", "torch._dynamo")]
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._caught.__exit__(None, None, None)
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
