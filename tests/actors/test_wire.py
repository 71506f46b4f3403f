"""Tensors cross the wire with every bit, and on one machine without a copy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from actors import wire

CPU = torch.device("cpu")
DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
SHAPES = [(), (0,), (3, 0, 2), (1,), (5, 3), (2, 3, 4, 4)]


def sample(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator) * 50).abs().to(dtype)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    alike = left.dtype == right.dtype and left.shape == right.shape
    return alike and all_bytes(left) == all_bytes(right)


def all_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.cpu().clone().untyped_storage())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip_of_every_type_and_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = sample(shape, dtype)
    arrays = wire.encode({"x": tensor, "y": torch.arange(3)})
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert wire.size(arrays) == tensor.numel() * tensor.element_size() + 24
    back = wire.decode(arrays, CPU)
    assert list(back) == ["x", "y"]
    assert same_bits(back["x"], tensor)
    assert same_bits(back["y"], torch.arange(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_values_that_are_no_numbers_keep_their_bits(dtype: torch.dtype) -> None:
    tensor = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-40], dtype=dtype)
    assert same_bits(wire.decode(wire.encode({"x": tensor}), CPU)["x"], tensor)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_neither_encoding_nor_decoding_copies(dtype: torch.dtype) -> None:
    tensor = sample((16, 4), dtype)
    assert tensor.data_ptr() % 64 == 0
    (array,) = wire.encode({"x": tensor}).values()
    assert array.__array_interface__["data"][0] == tensor.data_ptr()
    array.flags.writeable = False  # as Ray hands it over
    (name,) = wire.encode({"x": tensor})
    back = wire.decode({name: array}, CPU)["x"]
    assert back.data_ptr() == tensor.data_ptr()


def test_misaligned_memory_is_copied_to_where_kernels_round_alike() -> None:
    memory = torch.zeros(100)
    array = memory.numpy()[1:65]
    back = wire.decode({"x": array}, CPU)["x"]
    assert back.data_ptr() % 64 == 0
    array[:] = 1
    assert not back.any()
    aligned = wire.decode({"x": memory.numpy()[16:80]}, CPU)["x"]
    assert aligned.data_ptr() == memory.data_ptr() + 64


def _there_and_back(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return wire.decode(wire.copied(state), CPU)


@pytest.mark.parametrize("copied", [wire.detach_state, _there_and_back])
def test_state_is_copied_before_training_goes_on(
    copied: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> None:
    weight = torch.nn.Parameter(
        torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    )
    narrow = torch.full((4,), 1.5, dtype=torch.bfloat16)
    copy = copied({"w": weight, "step": torch.tensor(3.0), "narrow": narrow})
    with torch.no_grad():
        weight.mul_(2)
        narrow.mul_(2)
    assert torch.equal(copy["narrow"], torch.full((4,), 1.5, dtype=torch.bfloat16))
    assert copy["w"].is_contiguous() and not copy["w"].requires_grad
    assert torch.equal(copy["w"], torch.ones(2, 3, 4, 4))
    assert copy["step"] == 3.0 and copy["step"].shape == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_round_trip_from_gpu_to_gpu() -> None:
    device = torch.device("cuda:0")
    for dtype in DTYPES:
        for shape in SHAPES:
            tensor = sample(shape, dtype).to(device)
            arrays = wire.encode({"x": tensor, "y": torch.arange(3)})
            back = wire.decode(arrays, device)
            assert back["x"].device == back["y"].device == device
            assert same_bits(back["x"], tensor), (dtype, shape)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_encoding_waits_for_the_work_that_makes_a_tensor() -> None:
    device = torch.device("cuda:0")
    x = torch.full((2048, 2048), 0.5, device=device)
    for _ in range(20):
        x = (x @ x) / x.shape[0] + 0.25
    (array,) = wire.encode({"x": x}).values()
    x.zero_()
    assert np.allclose(array, array[0, 0]) and array[0, 0] > 0.25
