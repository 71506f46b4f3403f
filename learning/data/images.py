"""Encoded images as what a person sees: upright, and on white where they are transparent."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from learning.data.words import reason
from learning.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# Named, so that no other of Pillow's decoders (PostScript runs programs) sees a byte of a file.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
_GREY = ("1", "L", "LA")
_COLOR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
_ALPHA = ("LA", "PA", "RGBA")
_PIXELS = 89_478_485  # beyond that Pillow warns of images made to fill the memory
_ORIENTATION = 0x0112
# Pillow spreads grey values of 2 and 4 bits over 0 to 255, but not the one that is transparent.
_SPREAD = {"L;2": 85, "L;4": 17}


def decode_image(data: bytes) -> np.ndarray:
    """Decode one image to uint8 (C, H, W): grey images have 1 channel, all others 3 (RGB).

    It is turned and mirrored as its EXIF orientation says, and laid on white where it is
    transparent. Of an animation or several pages the first is taken. Colour profiles are ignored.

    Raises:
        UserError: when the bytes are no image of a known format, a damaged one, one of more than
            8 bits a channel, or one too large.
    """
    from PIL import Image, UnidentifiedImageError  # here: every actor imports this module

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            _check(opened)
            return _on_white(_upright(opened)).transpose(2, 0, 1)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"cannot be decoded (no known image format, which are {', '.join(_FORMATS)})"
        ) from error
    except Exception as error:  # damaged files end in any of Pillow's and zlib's errors
        raise UserError(f"cannot be decoded ({reason(error)})") from error


def _check(image: Image) -> None:
    """Refuse what would be cut, rounded or too large, before any pixel is decoded."""
    pixels = image.width * image.height
    if pixels > _PIXELS:
        raise UserError(
            f"has {image.width} x {image.height} pixels, more than the {_PIXELS} that are decoded"
        )
    # Of 16-bit colors Pillow keeps the high byte; only the layout of the file still tells.
    deep = image.mode.startswith("I") or (image.format == "PNG" and ";16" in _layout(image))
    if deep or image.mode not in _GREY + _COLOR:
        what = "16 bits a channel" if deep else f"the pixel mode {image.mode}"
        raise UserError(f"has {what}, which is not 8-bit grey or color")


def _layout(image: Image) -> str:
    """How the file stores a pixel, in Pillow's words; known until the pixels are decoded."""
    return " ".join(str(tile[3]) for tile in image.tile)  # pyright: ignore


def _upright(image: Image) -> Image:
    """Decode the pixels, turned as the EXIF orientation says; what is no orientation is none."""
    from PIL.Image import Transpose

    layout = _layout(image) if image.format == "PNG" else ""
    image.load()  # reads the last of the tags as well
    if layout in _SPREAD and "transparency" in image.info:
        image.info["transparency"] *= _SPREAD[layout]
    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image) -> np.ndarray:
    """The image as grey (H, W, 1) or RGB (H, W, 3), uint8, on white where it is transparent."""
    from PIL import Image

    grey = image.mode in _GREY
    clear = image.palette is not None and image.palette.mode.endswith("A")
    if clear or image.mode in _ALPHA or "transparency" in image.info:
        seen = image.convert("LA" if grey else "RGBA")
        flat = Image.new("L" if grey else "RGB", image.size, "white")
        flat.paste(seen.convert(flat.mode), mask=seen.getchannel("A"))
    else:
        flat = image.convert("L" if grey else "RGB")
    return np.asarray(flat).reshape(image.height, image.width, -1)
