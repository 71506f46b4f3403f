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
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

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
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    flavor = _flavor()
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
            flavor.save_model(
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


def _flavor() -> ModuleType:
    """The module `mlflow.pytorch`; its import sets up the process's logging, which is undone."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    flavor = import_module("mlflow.pytorch")
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
    return flavor


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep to itself what MLflow and PyTorch say about exporting."""
    loggers = [logging.getLogger(n) for n in ("mlflow", "torch.export", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
