"""Encoded images become what a person sees, or one sentence."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from learning.data import decode_image
from learning.errors import UserError
from tests.learning.pictures import encode, pictures, raw_png

COLOR = pictures(1, seed=3)[0]
GREY = pictures(1, color=False, seed=4)[0]


def seen(data: bytes) -> np.ndarray:
    """As (H, W, C), or (H, W) where there is one channel."""
    pixels = decode_image(data)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


# What EXIF's numbers mean, by NumPy alone: the position of the first row and column.
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize("number", range(10))
def test_images_are_turned_as_exif_says(kind, number):
    exif = Image.Exif()
    exif[0x0112] = number
    fields = {"lossless": True} if kind == "webp" else {}
    data = encode(COLOR, kind, exif=exif, **fields)
    np.testing.assert_array_equal(seen(data), UPRIGHT.get(number, UPRIGHT[1])(COLOR))


def test_a_camera_held_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    stripes = np.zeros((8, 16), np.uint8)
    stripes[:, 8:] = 255  # the camera's right is the person's bottom
    pixels = seen(encode(stripes, "jpeg", exif=exif, quality=100))
    assert pixels.shape == (16, 8) and pixels[:7].max() < 9 and pixels[9:].min() > 246


def test_colors_under_full_transparency_are_not_seen():
    pixels = np.concatenate((COLOR, np.full((4, 5, 1), 255, np.uint8)), axis=2)
    np.testing.assert_array_equal(seen(encode(pixels)), COLOR)  # opaque: as it is
    pixels[1, 2, 3] = 0
    pixels[0, 0] = (10, 20, 30, 51)  # a fifth of it
    expected = COLOR.copy()
    expected[1, 2] = 255
    expected[0, 0] = (206, 208, 210)
    np.testing.assert_array_equal(seen(encode(pixels)), expected)
    grey = np.stack((GREY, np.full((4, 5), 255, np.uint8)), axis=2)
    grey[2, 3, 1] = 0
    expected = GREY.copy()
    expected[2, 3] = 255
    np.testing.assert_array_equal(seen(encode(Image.fromarray(grey, "LA"))), expected)


@pytest.mark.parametrize(
    ("depth", "row", "clear", "expected"),
    [
        (1, 0b01000000, 1, [0, 255]),
        (1, 0b01000000, 0, [255, 255]),
        (2, 0b00011011, 2, [0, 85, 255, 255]),
        (2, 0b00011011, 1, [0, 255, 170, 255]),
        (4, 0x37, 3, [255, 119]),
        (8, 0x37, 0x37, [255]),
        (8, 0x37, 0x38, [0x37]),
    ],
)
def test_grey_values_that_are_transparent(depth, row, clear, expected):
    data = raw_png(depth, 0, [bytes([row])], len(expected), struct.pack(">H", clear))
    assert seen(data).tolist() == [expected]


def test_palettes_with_and_without_transparency():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([9, 8, 7, 60, 50, 40, 1, 2, 3])
    assert seen(encode(image)).tolist() == [[[9, 8, 7], [60, 50, 40], [1, 2, 3]]]
    for kind in ("png", "gif"):
        data = encode(image, kind, transparency=1)
        assert seen(data).tolist() == [[[9, 8, 7], [255, 255, 255], [1, 2, 3]]]
    data = encode(image, transparency=bytes([0, 255, 255]))  # an alpha for each color
    assert seen(data).tolist() == [[[255, 255, 255], [60, 50, 40], [1, 2, 3]]]
    key = encode(COLOR, transparency=tuple(int(v) for v in COLOR[3, 4]))  # one color of many
    assert seen(key)[3, 4].tolist() == [255, 255, 255] and (seen(key)[:3] == COLOR[:3]).all()


def test_bits_cmyk_and_the_first_of_several_frames():
    bits = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    assert seen(encode(bits)).tolist() == [[0, 255, 255]]
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = seen(encode(ink, "jpeg", quality=100)).reshape(-1, 3).mean(0)
    assert red > 250 and green < 5 and blue < 5
    frames = [Image.fromarray(np.full((3, 3), value, np.uint8)) for value in (40, 200)]
    for kind in ("gif", "png"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert set(seen(data).ravel().tolist()) == {40}


@pytest.mark.parametrize(("kind", "values"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_images_of_16_bits_are_refused_and_not_cut(kind, values):
    data = raw_png(16, kind, [b"\x12\x34" * values], 1)
    with pytest.raises(UserError, match="has 16 bits a channel, which is not 8-bit"):
        decode_image(data)


def test_images_made_to_fill_the_memory_are_refused():
    black = raw_png(1, 0, [bytes(1250)] * 10_000, 10_000)  # 12 MB of bits in a file of 30 kB
    assert len(black) < 50_000
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(UserError, match="has 10000 x 10000 pixels, more than the 89478485"),
    ):
        decode_image(black)


@pytest.mark.parametrize("kind", ["tiff", "ppm", "pcx", "tga", "eps", "ico", "dds"])
def test_other_formats_never_reach_a_decoder(kind):
    with pytest.raises(UserError, match="no known image format, which are PNG, JPEG, GIF, BMP"):
        decode_image(encode(COLOR, kind))


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp"])
def test_the_formats_that_are_read(kind):
    assert seen(encode(Image.new("RGB", (5, 4), (250, 0, 0)), kind)).shape == (4, 5, 3)


def test_damaged_exif_is_no_orientation():
    data = encode(COLOR, exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + b"\xff" * 40)
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        np.testing.assert_array_equal(seen(data), COLOR)
