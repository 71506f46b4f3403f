"""Codecs: what they lose is bounded, lost once, and never hidden."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learning.policies.codecs import BFloat16, Codec, Float16, Int8

CODECS = [Codec(), BFloat16(), Float16(), Int8()]
LOSSY = CODECS[1:]
KINDS = [type(c).__name__ for c in CODECS]
SHAPES = [(3, 4), (2, 3, 4), (2, 3, 4, 5), (2, 3, 1, 1), (5,), ()]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Tensors of all shapes whose magnitudes spread over many orders, with zeros among them."""
    shape = draw(st.sampled_from(SHAPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    exponent, spread = draw(st.integers(-90, 110)), draw(st.sampled_from([0, 1, 12]))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x * torch.randint(0, 4, shape, generator=generator).clamp(max=1)
    x = x * 2.0 ** torch.randint(-spread, spread + 1, shape, generator=generator)
    x = x * math.ldexp(1.0, exponent)
    return x.float() if draw(st.booleans()) else x


def round_trip(codec: Codec, x: Tensor) -> Tensor:
    return codec.decode(codec.encode("x", x), "x", x.dtype)


def bound(codec: Codec, x: Tensor) -> Tensor:
    """The largest error of each element that the classes promise."""
    x = x.double()
    if isinstance(codec, BFloat16):
        return x.abs() * 2**-8 * (1 + 2**-20)
    if isinstance(codec, Float16):
        return torch.maximum(x.abs() * 2**-11 * (1 + 2**-12), x.abs().max() * 2**-39 + 2**-125)
    if isinstance(codec, Int8):
        return (codec.encode("x", x)["x.scale"].double() * (0.5 + 1e-5)).expand_as(x)
    return torch.zeros_like(x)


@pytest.mark.parametrize("codec", CODECS, ids=KINDS)
@settings(max_examples=60)
@given(x=tensors())
def test_errors_are_bounded(codec: Codec, x: Tensor) -> None:
    y = round_trip(codec, x)
    assert y.shape == x.shape and y.dtype == x.dtype
    assert bool(((y.double() - x.double()).abs() <= bound(codec, x)).all())


@pytest.mark.parametrize("codec", CODECS, ids=KINDS)
@settings(max_examples=60)
@given(x=tensors())
def test_coding_what_was_decoded_gives_the_same_bits(codec: Codec, x: Tensor) -> None:
    once = codec.encode("x", x)
    again = codec.encode("x", codec.decode(once, "x", x.dtype))
    assert sorted(once) == sorted(again)
    for name, tensor in once.items():
        assert torch.equal(tensor, again[name]) and tensor.dtype == again[name].dtype


@pytest.mark.parametrize("codec", LOSSY, ids=KINDS[1:])
@settings(max_examples=40)
@given(x=tensors(), factor=st.integers(-5, 5))
def test_powers_of_two_change_nothing(codec: Codec, x: Tensor, factor: int) -> None:
    """Gradients of sums and of means are coded equally well."""
    if float(x.abs().min()) > 0:
        x = x / x.abs().max()
        assert torch.equal(round_trip(codec, x * 2**factor), round_trip(codec, x) * 2**factor)


@pytest.mark.parametrize("codec", CODECS, ids=KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_of_a_message_are_contiguous_and_detached(codec, dtype) -> None:
    x = torch.randn(2, 3, 4, 5, requires_grad=True).to(dtype)
    x = (x * 2).contiguous(memory_format=torch.channels_last)
    message = codec.encode("x", x)
    for tensor in message.values():
        assert tensor.is_contiguous() and not tensor.requires_grad
        assert tensor.stride() == torch.empty(tensor.shape).stride()
    decoded = codec.decode(message | {"y": torch.zeros(2)}, "x", dtype)
    assert decoded.dtype == dtype and decoded.shape == x.shape
    # The base keeps the layout as well.
    assert decoded.stride() == (x.stride() if type(codec) is Codec else message["x"].stride())
    assert torch.equal(decoded, codec.decode(message, "x", dtype))


def test_the_base_keeps_bits_and_type() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.randn(3, 4).to(dtype)
        (sent,) = Codec().encode("x", x).values()
        assert sent.dtype == dtype and torch.equal(sent, x)
        assert Codec().decode({"x": sent}, "x", torch.float32).dtype == dtype


@pytest.mark.parametrize("codec", CODECS, ids=KINDS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
def test_integers_pass(codec: Codec, dtype: torch.dtype) -> None:
    tokens = torch.tensor([[1, 0], [100, 7]]).to(dtype)
    message = codec.encode("x", tokens)
    assert list(message) == ["x"]
    decoded = codec.decode(message, "x", torch.float32)
    assert decoded.dtype == dtype and torch.equal(decoded, tokens)


def test_int8_by_hand() -> None:
    # Columns are channels: 127 * 0.5 is the first's largest, 127 * 2 the second's; 0 the third's.
    x = torch.tensor([[63.5, -254.0, 0.0], [0.25, 3.0, 0.0], [0.75, -5.0, 0.0], [-0.8, 1.1, 0.0]])
    message = Int8().encode("h", x)
    assert message["h.scale"].dtype == torch.float32 and message["h.scale"].shape == (1, 3)
    assert message["h.scale"][0, :2].tolist() == [0.5, 2.0]
    # 0.25 / 0.5 = 0.5 and 0.75 / 0.5 = 1.5, 3 / 2 = 1.5 and -5 / 2 = -2.5: half to even.
    codes = [[127, -127, 0], [0, 2, 0], [2, -2, 0], [-2, 1, 0]]
    assert message["h"].dtype == torch.int8 and message["h"].tolist() == codes
    decoded = [[63.5, -254.0, 0.0], [0.0, 4.0, 0.0], [1.0, -4.0, 0.0], [-1.0, 2.0, 0.0]]
    assert Int8().decode(message, "h", torch.float32).tolist() == decoded


def test_int8_channels() -> None:
    x = torch.ones(2, 3, 4, 5)
    x[:, 1] = 10.0
    scale = Int8().encode("x", x)["x.scale"]
    assert scale.shape == (1, 3, 1, 1)
    assert scale.flatten().tolist() == pytest.approx([1 / 127, 10 / 127, 1 / 127], rel=2**-16)
    assert Int8().encode("x", x[0])["x.scale"].shape == (1, 1, 5)
    assert Int8().encode("x", x[0, 0])["x.scale"].shape == (1, 5)
    assert Int8().encode("x", x[0, 0, 0])["x.scale"].shape == (1,)
    assert Int8().encode("x", x[0, 0, 0, 0])["x.scale"].shape == ()


def test_float16_by_hand() -> None:
    # The power of two below 98304 is 2^16, and 2^16 / 2^14 = 4: 98304 travels as 24576.
    x = torch.tensor([98304.0, -1.0, 2.0**-22])
    message = Float16().encode("x", x)
    assert message["x.scale"].item() == 4.0
    assert message["x"].tolist() == [24576.0, -0.25, 2.0**-24]
    assert torch.equal(Float16().decode(message, "x", torch.float32), x)


@pytest.mark.parametrize("magnitude", [1e-20, 1e-6, 65519.0, 65520.0, 1e10, 3e38])
def test_float16_does_not_overflow(magnitude: float) -> None:
    x = torch.tensor([magnitude, -magnitude / 3])
    y = round_trip(Float16(), x)
    assert torch.allclose(y, x, rtol=2**-11, atol=0.0)


@pytest.mark.parametrize("codec", CODECS, ids=KINDS)
def test_zeros_stay(codec: Codec) -> None:
    x = torch.zeros(2, 3, 4)
    assert torch.equal(round_trip(codec, x), x)


@pytest.mark.parametrize("codec", CODECS, ids=KINDS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden(codec: Codec, wrong: float) -> None:
    x = torch.ones(2, 3)
    x[1, 2] = wrong
    y = round_trip(codec, x)
    assert not y[1, 2].isfinite()
    if isinstance(codec, Int8):  # only its channel
        assert torch.equal(y[:, :2], round_trip(codec, x[:, :2]))


def test_bytes_on_the_way() -> None:
    x = torch.randn(8, 16, 10, 10)
    size = {type(c): sum(t.nbytes for t in c.encode("x", x).values()) for c in CODECS}
    assert size[Codec] == x.nbytes
    assert size[BFloat16] == x.nbytes / 2
    assert size[Float16] == x.nbytes / 2 + 4
    assert size[Int8] == x.nbytes / 4 + 16 * 4
