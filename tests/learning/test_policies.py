"""Policies: settings become codecs and updaters; what cannot be right is refused with a fix."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from learning.errors import UserError
from learning.policies.choice import check_update, make_codec, make_updater
from learning.policies.codecs import BFloat16, Codec, Float16, Int8
from learning.policies.fused import FusedUpdater
from learning.policies.subspace import Subspace
from learning.policies.update import Updater
from learning.settings import (
    CodecSettings,
    ConstantSchedule,
    SGDSettings,
    SubspaceCodecSettings,
    UpdateSettings,
)
from tests.learning.helpers import mlp

CODEC: TypeAdapter[Any] = TypeAdapter(CodecSettings)


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("float32", Codec), ("bfloat16", BFloat16), ("float16", Float16), ("int8", Int8)],
)
def test_every_kind_has_its_codec(kind: str, codec: type[Codec]) -> None:
    assert type(make_codec(CODEC.validate_python({"kind": kind}))) is codec


def test_the_subspace_knows_the_stream() -> None:
    codec = make_codec(SubspaceCodecSettings(), width=8, rank=3, vocabulary=5)
    assert isinstance(codec, Subspace)
    assert (codec.width, codec.rank) == (8, 3) and codec.table.shape == (5, 8)


@pytest.mark.parametrize("missing", ["width", "rank", "vocabulary"])
def test_a_subspace_needs_a_network_that_stays_in_it(missing: str) -> None:
    known = {"width": 8, "rank": 3, "vocabulary": 5} | {missing: None}
    with pytest.raises(UserError, match=r"set network.subspace .* or use codec.kind = int8"):
        make_codec(SubspaceCodecSettings(), **known)


@pytest.mark.parametrize(
    "wrong", [{"kind": "int4"}, {"kind": "int8", "rank": 3}, {"kind": "subspace", "rank": 4}]
)
def test_unknown_codecs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CODEC.validate_python(wrong)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("inf"), float("nan")])
def test_tau_is_positive(tau: float) -> None:
    with pytest.raises(ValidationError):
        UpdateSettings(proximal=tau)


FUSED = UpdateSettings(fused=True)


def check(update: UpdateSettings = FUSED, clip: float | None = None, **rest: Any) -> None:
    check_update(update, SGDSettings(clip=clip), **{"shards": 1, **rest})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"shards": 4}, r"training.shards = 4 .* use training.shards = 1 or update.fused = false"),
        ({"clip": 0.5}, r"optimizer.clip = 0.5 .* optimizer.clip = null or update.fused = false"),
        (
            {"update": UpdateSettings(fused=True, proximal=2.0)},
            r"update.proximal = 2.0 .* use update.proximal = null or update.fused = false",
        ),
        (
            {"second_order": True},
            r"computing with gradients: use another rule.kind or update.fused",
        ),
        (
            {"losses": 2},
            r"2 losses reach a parameter: use a rule with one, or update.fused = false",
        ),
    ],
)
def test_fused_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check(**arguments)


def test_other_updates_take_everything() -> None:
    check()
    for update in (UpdateSettings(), UpdateSettings(proximal=1.0)):
        check(update, clip=1.0, shards=4, losses=3, second_order=True)


@pytest.mark.parametrize(
    ("update", "kind", "layers"),
    [
        (UpdateSettings(), Updater, None),
        (FUSED, FusedUpdater, None),
        (UpdateSettings(proximal=0.5), Updater, 4),
    ],
)
def test_updaters_follow_the_settings(
    update: UpdateSettings, kind: type, layers: int | None
) -> None:
    module = mlp(0)
    updater = make_updater(
        module.named_parameters(),
        SGDSettings(),
        ConstantSchedule(),
        update,
        module=module,
        index=1,
        steps=1,
        batch=4,
        shards=1,
    )
    assert type(updater) is kind
    if layers is None:
        assert updater.proximal is None
        with updater.recording() as moments:
            assert moments == []
    else:
        assert updater.proximal is not None
        assert updater.proximal.tau == 0.5 and len(updater.proximal.layers) == layers
