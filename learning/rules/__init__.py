"""The learning rules. To add one, write a `Rule` in a file of its own and list it in `AnyRule`."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from learning.rules.alignment import Alignment, DirectAlignment, TargetAlignment
from learning.rules.auglocal import AugLocal
from learning.rules.backlink import BackLink
from learning.rules.backprop import Backprop
from learning.rules.base import Rule
from learning.rules.bll import BLL
from learning.rules.ccl import CounterCurrentLearning
from learning.rules.delayed import DelayedGradients
from learning.rules.guided import PeriodicGuidance
from learning.rules.infopro import InfoPro
from learning.rules.interlocking import Interlocking
from learning.rules.local import Local
from learning.rules.man import MomentumAuxiliary
from learning.rules.neuron_groups import NeuronGroups
from learning.rules.overlapping import Overlapping
from learning.rules.predsim import PredSim
from learning.rules.reconcile import Reconciliation
from learning.rules.replay import ReplayedLocal
from learning.rules.solo import SharedUnembedding

AnyRule = (
    Backprop
    | Local
    | Interlocking
    | Overlapping
    | BackLink
    | PeriodicGuidance
    | Reconciliation
    | BLL
    | DelayedGradients
    | ReplayedLocal
    | Alignment
    | DirectAlignment
    | TargetAlignment
    | PredSim
    | InfoPro
    | AugLocal
    | NeuronGroups
    | MomentumAuxiliary
    | SharedUnembedding
    | CounterCurrentLearning
)

RULES: tuple[type[Rule], ...] = get_args(AnyRule)
RuleSettings = Annotated[AnyRule, Field(discriminator="kind")]

__all__ = [
    "BLL",
    "RULES",
    "Alignment",
    "AugLocal",
    "BackLink",
    "Backprop",
    "CounterCurrentLearning",
    "DelayedGradients",
    "DirectAlignment",
    "InfoPro",
    "Interlocking",
    "Local",
    "MomentumAuxiliary",
    "NeuronGroups",
    "Overlapping",
    "PeriodicGuidance",
    "PredSim",
    "Reconciliation",
    "ReplayedLocal",
    "Rule",
    "RuleSettings",
    "SharedUnembedding",
    "TargetAlignment",
]
