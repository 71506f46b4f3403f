"""What the tests of reconciliation share: its penalty written out, and an engine for its limits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from learning.rules import Rule
from learning.sequential import SequentialEngine
from learning.settings import SGDSettings
from tests.learning.helpers import batch_of, learner_settings, make_engine, mlp

MOMENTUM = SGDSettings(lr=0.2)
DISTANCES = ["squared", "scale-free"]


def engine_of(rule: Rule, **settings) -> SequentialEngine:
    settings = learner_settings(batch=8, **settings)
    return make_engine(rule, mlp(0), ["1.0", "2.0"], x=batch_of(0)[0], settings=settings)


def distance(e: Tensor, d: Tensor, kind: str) -> Tensor:
    """R, summed over samples."""
    if kind == "squared":
        return ((e - d) ** 2).sum()
    return 2 * (1 - F.cosine_similarity(e, d, dim=1)).sum()


def errors(scores: Tensor, y: Tensor) -> Tensor:
    """The gradient of the sum of cross-entropies: p - y."""
    return torch.softmax(scores, 1) - F.one_hot(y, 3)


HEAD = ("head.linear.weight", "head.linear.bias")
