"""`.npz` files that lie: one sentence before any memory is asked for."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learning.data import ArraysSettings, load_dataset, memory
from learning.data.npz import read_npz
from learning.errors import UserError

CONTENT: dict[str, Any] = {
    "x_train": np.random.default_rng(0).normal(size=(20, 4)),
    "y_train": np.arange(20) % 3,
    "x_test": np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32),
    "y_test": np.arange(6) % 3,
}


def member(array: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array))
    return file.getvalue()


def header(shape: tuple[int, ...], descr: str = "<f8", *, fortran: bool = False) -> bytes:
    """Header only, which may say anything."""
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def pack(path: Path, compression: int = zipfile.ZIP_STORED, /, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key, array in CONTENT.items():
            archive.writestr(f"{key}.npy", members.get(key, member(array)))
    return path


def sentence(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(ArraysSettings(path=path))
    assert len(str(caught.value)) < 500 and path.name in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.npz"


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_files_of_every_compression_and_order(path, compression):
    fortran = np.asfortranarray(CONTENT["x_train"].astype(">f4"))
    dataset = load_dataset(ArraysSettings(path=pack(path, compression, x_train=member(fortran))))
    assert np.array_equal(dataset.train.stored, CONTENT["x_train"].astype(np.float32))
    assert np.array_equal(dataset.test.x, CONTENT["x_test"])


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_files_are_those_of_numpy(path, write):
    write(path, **CONTENT, more=np.array([None]))  # what is not asked for is not read
    dataset = load_dataset(ArraysSettings(path=path))
    assert np.array_equal(dataset.test.x, CONTENT["x_test"])
    assert np.array_equal(dataset.train.stored, CONTENT["x_train"])


def test_large_members_are_read_in_blocks(path):
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 200, 201), dtype=np.uint8)
    test = x[:6].copy()
    pack(path, zipfile.ZIP_DEFLATED, x_train=member(x), x_test=member(test))
    dataset = load_dataset(ArraysSettings(path=path))
    assert np.array_equal(dataset.train.stored, x) and np.array_equal(dataset.test.x, test)


@pytest.mark.parametrize("key", CONTENT)
def test_arrays_without_a_dimension_are_refused(path, key):
    assert f"{key} has the" in sentence(pack(path, **{key: member(3)}))


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (header((2**40, 4)), "shape (1099511627776, 4), 35,184.37 GB, but it holds 0 bytes"),
        (header((2**62, 2**62)), "over a billion GB, but it holds 0 bytes"),
        (header((20, 4)), "says that x_train.npy has the shape (20, 4), 640 bytes, but it holds 0"),
        (header((20, 4)) + bytes(648), "640 bytes, but it holds 648 bytes"),
        (header((-20, -4)) + bytes(640), "has the shape (-20, -4)"),
        (header((20, 4), "|O") + bytes(640), "without pickle"),
        (header((10**200,) * 20), "over a billion GB"),
        (b"\x93NUMPY\x09\x09" + bytes(20), "without pickle"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "without pickle"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"[" * 9000, "without pickle"),
        (b"\x80\x04N.", "without pickle"),
        (b"", "without pickle"),
    ],
)
def test_headers_that_lie_are_refused(path, lie, words):
    assert words in sentence(pack(path, x_train=lie))


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(path, monkeypatch):
    size = 1 << 24  # 16 MB of zeros in a file of 18 kB
    pack(path, zipfile.ZIP_DEFLATED, x_train=header((size // 4, 4), "|u1") + bytes(size))
    assert path.stat().st_size < size / 900
    monkeypatch.setattr(memory, "available_memory", lambda: size)
    monkeypatch.setattr(np, "empty", None)
    assert "needs 0.02 GB of memory, but 0.02 GB are free: save fewer rows" in sentence(path)


def test_claims_of_memory_count_the_cast(path, monkeypatch):
    content = CONTENT | {"y_test": CONTENT["y_test"].astype(np.int16)}
    needed = 20 * 4 * 8 + 20 * 8 + 6 * 4 * 4 + 6 * (2 + 8)
    np.savez(path, **content)
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 1)
    assert f"needs {needed:,} bytes of memory" in sentence(path)
    monkeypatch.setattr(memory, "available_memory", lambda: needed)
    assert load_dataset(ArraysSettings(path=path)).classes == 3


def test_encrypted_members_are_refused(path):
    whole = bytearray(pack(path).read_bytes())
    place = whole.rindex(b"PK\x01\x02")  # the last entry of the directory
    whole[place + 8] |= 1
    path.write_bytes(whole)
    assert "has 'y_test' encrypted: save it again" in sentence(path)


def test_members_of_one_name_are_refused(path):
    pack(path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x_test.npy", member(np.zeros((6, 4))))
    assert "has 2 arrays 'x_test'" in sentence(path)


def test_names_with_a_nul_are_refused(path):
    pack(path)
    whole = path.read_bytes().replace(b"y_test.npy", b"y_test.np\0")
    path.write_bytes(whole)
    assert "has no array 'y_test'" in sentence(path)
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in CONTENT.items():
            archive.writestr(f"{key}.npy!!" if key == "x_test" else f"{key}.npy", member(array))
    path.write_bytes(path.read_bytes().replace(b"x_test.npy!!", b"x_test.npy\0!"))
    assert r"has the array 'x_test.npy\x00!'" in sentence(path).replace("\\\\", "\\")


def test_thousands_of_names_stay_one_sentence(path):
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3000):
            archive.writestr(f"{'n' * 300}\n{i}", b"")
    said = sentence(path)
    assert "and 2998 more" in said and said.isprintable()


def test_a_damaged_byte_is_found_by_the_checksum(path):
    whole = bytearray(pack(path).read_bytes())
    place = whole.index(CONTENT["x_test"].tobytes())
    whole[place + 5] ^= 1
    path.write_bytes(whole)
    assert "without pickle (Bad CRC-32" in sentence(path)


@pytest.mark.parametrize("name", ["a\0b.npz", "n" * 300, "~nobody-has-this-name/a.npz"])
def test_paths_that_cannot_be_are_refused(tmp_path, name):
    wanted = Path(name) if name.startswith("~") else tmp_path / name
    with pytest.raises(UserError, match="there is no file .*: give the path of an .npz file") as e:
        read_npz(wanted)
    assert len(str(e.value)) < 500 and str(e.value).isprintable()


def test_devices_and_folders_are_no_files(tmp_path):
    for place in (Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match="there is no file"):
            load_dataset(ArraysSettings(path=place))


def test_free_memory_is_bounded_by_a_container(tmp_path, monkeypatch):
    machine, container = tmp_path / "meminfo", tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_MEMORY", machine)
    monkeypatch.setattr(memory, "_LIMIT", container)
    assert memory.available_memory() > 10**8  # all of the machine's, where nothing says more
    machine.write_text("MemTotal: 9000 kB\nMemAvailable:    2000 kB\n")
    assert memory.available_memory() == 2_048_000
    container.write_text("max\n")
    assert memory.available_memory() == 2_048_000
    container.write_text("1000000\n")
    assert memory.available_memory() == 1_000_000
