"""`.npz` files: what they claim is checked before any memory is asked for."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from learning.data.arrays import check_arrays
from learning.data.files import existing_file
from learning.data.memory import amount, check_memory
from learning.data.words import listed, reason
from learning.errors import UserError, named, shown

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_BLOCK = 1 << 20  # bytes unpacked at a time
_ENCRYPTED = 0x1


class _Header(NamedTuple):
    """What a member says that it holds."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool

    @property
    def size(self) -> int:
        """Bytes, exactly: the product may be beyond any integer of NumPy's."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def memory(self) -> int:
        """Bytes while it is read and cast."""
        kept = self.dtype in (np.uint8, np.float32, np.float64, np.int64)
        return self.size + (0 if kept else math.prod(self.shape) * 8)


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read x_train, y_train, x_test and y_test of an `.npz` file.

    Returns:
        x_train, y_train, x_test, y_test: x (N, D) or (N, C, H, W), both uint8, float32 or float64;
            y int64 (N,).

    Raises:
        UserError: when the file is missing, damaged, encrypted or claims what it does not hold or
            what does not fit into memory, or an array is missing or has the wrong type, shape or
            length.
    """
    path = existing_file(path, "an .npz file")
    try:
        found = _load(path)
    except UserError:
        raise
    except Exception as error:  # damaged files end in any of zipfile's, zlib's and NumPy's errors
        raise UserError(
            f"{named(path)} cannot be read as .npz without pickle ({reason(error)}): save it again "
            "with numpy.savez from arrays of numbers"
        ) from error
    try:
        return check_arrays(*found)
    except UserError as error:
        raise UserError(f"{named(path)}: {error}") from error


def _load(path: Path) -> list[np.ndarray]:
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise UserError(f"{named(path)} holds a single array: save it with numpy.savez instead")
        with zipfile.ZipFile(file) as archive:
            members = [_member(path, archive, key) for key in _KEYS]
            needed = 0
            for member in members:
                with archive.open(member) as data:
                    needed += _header(path, member, data).memory
            check_memory(named(path), needed, "save fewer rows or a smaller type, such as uint8")
            return [_array(path, archive, member) for member in members]


def _member(path: Path, archive: zipfile.ZipFile, key: str) -> zipfile.ZipInfo:
    names = [info.filename for info in archive.infolist()]
    found = [info for info in archive.infolist() if info.filename == f"{key}.npy"]
    if not found:
        raise UserError(
            f"{named(path)} has no array {key!r}, only "
            f"{listed(name.removesuffix('.npy') for name in names)}: save it with "
            f"{', '.join(_KEYS)}"
        )
    (member, *others), again = found, "save it again with numpy.savez"
    if others:
        raise UserError(f"{named(path)} has {len(found)} arrays {key!r}: {again}")
    if member.orig_filename != member.filename:
        raise UserError(f"{named(path)} has the array {shown(member.orig_filename)}: {again}")
    if member.flag_bits & _ENCRYPTED:
        raise UserError(f"{named(path)} has {key!r} encrypted: {again}, which does not encrypt")
    return member


def _header(path: Path, member: zipfile.ZipInfo, data: IO[bytes]) -> _Header:
    """Read the header of an open member and compare it with the member's size."""
    version = np.lib.format.read_magic(data)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(data)
    else:  # 3.0 is for names of fields, and those are no numbers
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(data)
    header = _Header(dtype, shape, fortran)
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds Python objects")
    held = member.file_size - data.tell()
    if header.size != held or min(shape, default=0) < 0:
        raise UserError(
            f"{named(path)} says that {member.filename} has the shape {shown(shape)}, "
            f"{amount(header.size)}, but it holds {amount(held)}: fetch or save the file "
            "again"
        )
    return header


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as data:
        header = _header(path, member, data)
        array = np.empty(header.shape, header.dtype, "F" if header.fortran else "C")
        into = array.reshape(-1, order="A").view(np.uint8) if array.nbytes else np.zeros(0, "u1")
        for start in range(0, len(into), _BLOCK):
            block = into[start : start + _BLOCK]
            read = data.read(len(block))
            block[:] = np.frombuffer(read, np.uint8)  # fails where the file ends early
        if data.read(1):  # the end, where the checksum is compared
            raise ValueError(f"{member.filename} is longer than it says")
    return array
