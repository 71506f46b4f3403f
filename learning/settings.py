"""The base of every settings model and the settings shared by all rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from learning.bounds import (
    MOST_ENTRIES,
    Count,
    Divisor,
    Epsilon,
    Factor,
    Flag,
    Fraction,
    InnerShare,
    Length,
    Rate,
    Rates,
    Share,
    Steps,
)


class Settings(BaseModel):
    """A frozen pydantic model that refuses unknown keys.

    How to check values is worked out when the first are checked: an actor, which is given settings
    that are checked, never does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class SGDSettings(Settings):
    """Stochastic gradient descent; `lr` is one number or one number a block."""

    kind: Literal["sgd"] = "sgd"
    lr: Rate | Rates = 0.1
    momentum: Share = 0.9
    nesterov: Flag = False
    weight_decay: Rate = 0.0
    clip: Factor | None = Field(default=None, description="largest gradient norm of a block")


class AdamWSettings(Settings):
    """AdamW (Loshchilov & Hutter 2019); `lr` is one number or one number a block."""

    kind: Literal["adamw"] = "adamw"
    lr: Rate | Rates = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Epsilon = 1e-8
    weight_decay: Rate = 0.01
    clip: Factor | None = Field(default=None, description="largest gradient norm of a block")


OptimizerSettings = Annotated[SGDSettings | AdamWSettings, Field(discriminator="kind")]


class ConstantSchedule(Settings):
    """The learning rate stays as it is."""

    kind: Literal["constant"] = "constant"


class CosineSchedule(Settings):
    """Cosine from the learning rate to `floor` times it, after a linear warm-up."""

    kind: Literal["cosine"] = "cosine"
    warmup: Share = Field(default=0.0, description="share of all steps spent warming up")
    floor: Fraction = 0.0


class OneCycleSchedule(Settings):
    """One cycle (Smith & Topin 2018): cosine up to the learning rate, then down to almost zero."""

    kind: Literal["one-cycle"] = "one-cycle"
    rise: InnerShare = Field(default=0.3, description="share of all steps spent rising")
    start_divisor: Divisor = 25.0
    final_divisor: Divisor = 1e4


class MultiStepSchedule(Settings):
    """The learning rate times `factor` at each milestone (shares of all steps)."""

    kind: Literal["multi-step"] = "multi-step"
    milestones: Annotated[tuple[Share, ...], Field(max_length=MOST_ENTRIES)] = (0.5, 0.75)
    factor: Length = 0.1


class WarmRestartsSchedule(Settings):
    """Cosine with warm restarts (Loshchilov & Hutter 2017); `period` is a share of all steps."""

    kind: Literal["warm-restarts"] = "warm-restarts"
    period: Length = 0.25
    growth: Count = 1
    floor: Fraction = 0.0


ScheduleSettings = Annotated[
    ConstantSchedule | CosineSchedule | OneCycleSchedule | MultiStepSchedule | WarmRestartsSchedule,
    Field(discriminator="kind"),
]


class PrecisionSettings(Settings):
    """The numeric policy of a block: what it computes in, layout of images, which kernels."""

    compute: Literal["float32", "bfloat16", "float64", "auto"] = Field(
        default="float32",
        description="auto: float32 or bfloat16, what a short measurement finds faster here",
    )
    memory_format: Literal["contiguous", "channels-last"] = "contiguous"
    compile: Literal["none", "inductor", "cuda-graphs"] = Field(
        default="none", description="how a block's units run in training: one by one, or as one"
    )


class UpdateSettings(Settings):
    """What happens between a block's gradients and its optimizer."""

    proximal: Factor | None = Field(
        default=None,
        description="tau of proximal backpropagation in linear layers; null: plain gradients",
    )
    fused: Flag = Field(
        default=False, description="step each parameter during the backward pass, free its gradient"
    )


class OuterSettings(Settings):
    """Lanes that learn apart and agree by an outer step (DiLoCo, Douillard et al. 2023)."""

    every: Steps = Field(description="steps that each lane does alone before all agree")
    lr: Factor = Field(default=0.7, description="learning rate of the outer step")
    momentum: Share = Field(default=0.9, description="Nesterov momentum of the outer step")


class Float32CodecSettings(Settings):
    """Tensors travel as they are, in their own type."""

    kind: Literal["float32"] = "float32"


class BFloat16CodecSettings(Settings):
    """Rounded to bfloat16: 8 significant bits, the range of float32."""

    kind: Literal["bfloat16"] = "bfloat16"


class Float16CodecSettings(Settings):
    """Rounded to float16 under one power-of-two scale a tensor: 11 significant bits."""

    kind: Literal["float16"] = "float16"


class Int8CodecSettings(Settings):
    """Rounded to 255 levels, with one float32 scale a channel."""

    kind: Literal["int8"] = "int8"


class SubspaceCodecSettings(Settings):
    """Coordinates of a residual stream in the subspace that `network.subspace` keeps it in."""

    kind: Literal["subspace"] = "subspace"


CodecSettings = Annotated[
    Float32CodecSettings
    | BFloat16CodecSettings
    | Float16CodecSettings
    | Int8CodecSettings
    | SubspaceCodecSettings,
    Field(discriminator="kind"),
]
