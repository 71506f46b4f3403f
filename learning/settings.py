"""The base of every settings model and the settings shared by all rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A frozen pydantic model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Rate = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class SGDSettings(Settings):
    """Stochastic gradient descent; `lr` is one number or one number a block."""

    kind: Literal["sgd"] = "sgd"
    lr: Rate | tuple[Rate, ...] = 0.1
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float | None = Field(default=None, gt=0, description="largest gradient norm of a block")


class AdamWSettings(Settings):
    """AdamW (Loshchilov & Hutter 2019); `lr` is one number or one number a block."""

    kind: Literal["adamw"] = "adamw"
    lr: Rate | tuple[Rate, ...] = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float | None = Field(default=None, gt=0, description="largest gradient norm of a block")


OptimizerSettings = Annotated[SGDSettings | AdamWSettings, Field(discriminator="kind")]


class ConstantSchedule(Settings):
    """The learning rate stays as it is."""

    kind: Literal["constant"] = "constant"


class CosineSchedule(Settings):
    """Cosine from the learning rate to `floor` times it, after a linear warm-up."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = Field(
        default=0.0, ge=0, lt=1, description="share of all steps spent warming up"
    )
    floor: float = Field(default=0.0, ge=0, le=1)


class OneCycleSchedule(Settings):
    """One cycle (Smith & Topin 2018): cosine up to the learning rate, then down to almost zero."""

    kind: Literal["one-cycle"] = "one-cycle"
    rise: float = Field(default=0.3, gt=0, lt=1, description="share of all steps spent rising")
    start_divisor: float = Field(default=25.0, ge=1)
    final_divisor: float = Field(default=1e4, ge=1)


class MultiStepSchedule(Settings):
    """The learning rate times `factor` at each milestone (shares of all steps)."""

    kind: Literal["multi-step"] = "multi-step"
    milestones: tuple[Share, ...] = (0.5, 0.75)
    factor: float = Field(default=0.1, gt=0, le=1)


class WarmRestartsSchedule(Settings):
    """Cosine with warm restarts (Loshchilov & Hutter 2017); `period` is a share of all steps."""

    kind: Literal["warm-restarts"] = "warm-restarts"
    period: float = Field(default=0.25, gt=0, le=1)
    growth: int = Field(default=1, ge=1)
    floor: float = Field(default=0.0, ge=0, le=1)


ScheduleSettings = Annotated[
    ConstantSchedule | CosineSchedule | OneCycleSchedule | MultiStepSchedule | WarmRestartsSchedule,
    Field(discriminator="kind"),
]


class PrecisionSettings(Settings):
    """The numeric policy of a block: what it computes in, layout of images, which kernels."""

    compute: Literal["float32", "bfloat16", "float64"] = "float32"
    memory_format: Literal["contiguous", "channels-last"] = "contiguous"
    compile: Literal["none", "inductor", "cuda-graphs"] = Field(
        default="none", description="how a block's units run in training: one by one, or as one"
    )


class UpdateSettings(Settings):
    """What happens between a block's gradients and its optimizer."""

    proximal: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="tau of proximal backpropagation in linear layers; null: plain gradients",
    )
    fused: bool = Field(
        default=False, description="step each parameter during the backward pass, free its gradient"
    )


class OuterSettings(Settings):
    """Lanes that learn apart and agree by an outer step (DiLoCo, Douillard et al. 2023)."""

    every: int = Field(ge=1, description="steps that each lane does alone before all agree")
    lr: float = Field(
        default=0.7, gt=0, allow_inf_nan=False, description="learning rate of the outer step"
    )
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="Nesterov momentum of the outer step"
    )


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
