"""The Ray engine ends with the bits of the sequential engine, also when resumed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learning.feedback import FeedbackSettings
from learning.heads import HeadSettings
from learning.networks import MLPSettings, ResNetSettings
from learning.readout import LatentSettings
from learning.rules import BLL, Backprop, Local
from learning.rules.bll import BootstrapSettings
from learning.settings import AdamWSettings, PrecisionSettings, SGDSettings
from orchestrator.events import Event, StepDone
from tests.orchestrator.engines import (
    CALENDAR,
    STEPS,
    Case,
    differences,
    inline_engine,
    ray_engine,
    snapshot_of,
    told,
)

RESUMED = 25
BOOTSTRAP = BootstrapSettings(share=0.5, until=0.8)
PLAIN = MLPSettings(widths=(12, 8, 10), normalization="none")
DROPOUT = MLPSettings(widths=(12, 8, 10), normalization="layer", dropout=0.2)
RESNET = ResNetSettings(widths=(4, 6), depths=1)

CASES = {
    "backprop, gpipe, dropout": Case(Backprop(order="gpipe"), DROPOUT, shards=4),
    "backprop, 1f1b, batch norm": Case(Backprop(), shards=4, optimizer=SGDSettings(lr=0.05)),
    "local, linear head, float64": Case(
        Local(), PLAIN, precision=PrecisionSettings(compute="float64")
    ),
    "local, conv head, resnet": Case(
        Local(head=HeadSettings(kind="conv", width=4, pool=3)),
        RESNET,
        at=("layer1", "layer2"),
        shards=2,
        optimizer=SGDSettings(lr=0.05),
    ),
    "bll, chain, delay 0, dropout": Case(
        BLL(feedback=FeedbackSettings(delay=0), bootstrap=BOOTSTRAP), DROPOUT
    ),
    "bll, chain, delay auto": Case(BLL(feedback=FeedbackSettings(hidden=5), bootstrap=BOOTSTRAP)),
    "bll, direct, resnet, bfloat16": Case(
        BLL(
            LatentSettings(kind="gaussian-learned"),
            FeedbackSettings(kind="direct", optimizer=AdamWSettings(lr=0.02)),
            BOOTSTRAP,
        )
        if False
        else BLL(
            latent=LatentSettings(kind="gaussian-learned"),
            feedback=FeedbackSettings(kind="direct", optimizer=AdamWSettings(lr=0.02)),
            bootstrap=BOOTSTRAP,
        ),
        RESNET,
        at=("layer2",),
        shards=2,
        precision=PrecisionSettings(compute="bfloat16", memory_format="channels-last"),
    ),
}
