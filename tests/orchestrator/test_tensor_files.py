"""Tensors as files: the format is that of safetensors, and the bytes are those of the tensors."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from learning.errors import UserError
from orchestrator import direct_files
from orchestrator.direct_files import write_large_file
from orchestrator.files import sealed
from orchestrator.tensor_files import _DTYPES, Hashed, encode_tensors
from tests.orchestrator.checkpointing import checkpoints_in, make_state, save, seed_of


def test_safetensors_reads_every_type_shape_and_layout() -> None:
    kinds = {
        str(dtype): torch.arange(6).reshape(2, 3).to(torch.float32).to(dtype) for dtype in _DTYPES
    }
    odd = {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "every other": torch.arange(8)[::2],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    shared = {"a": odd["transposed"], "b": odd["transposed"]}
    tensors = {**kinds, **odd, **shared}
    read = safetensors.torch.load(b"".join(encode_tensors(tensors)))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        left, right = (t.detach().contiguous().reshape(-1) for t in (read[name], tensor))
        assert torch.equal(left.view(torch.uint8), right.view(torch.uint8)), name


def test_tensors_are_aligned_in_the_file_and_not_copied() -> None:
    one, wide = torch.ones(3, dtype=torch.uint8), torch.ones(5, dtype=torch.float64)
    head, *rest = encode_tensors({"a": one, "b": wide})
    assert len(head) % 8 == 0 and [len(chunk) for chunk in rest] == [40, 3]
    wide[0] = 7.0
    assert bytes(rest[0])[:8] == wide[:1].numpy().tobytes()


def test_a_type_that_the_format_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"tensor w is of type torch.complex128, which safetens"):
        encode_tensors({"w": torch.ones(2, dtype=torch.complex128)})


BUFFER, BLOCK = 2**20, 4096


@pytest.mark.parametrize(
    "sizes",
    [
        [BUFFER],
        [BUFFER - 1, 1],
        [BUFFER + 1],
        [7, 3 * BUFFER, 0, BLOCK],
        [BUFFER, BLOCK],
        [2 * BUFFER, BLOCK - 1],
    ],
)
@pytest.mark.parametrize("refused", ["nowhere", "opening", "writing"])
def test_large_files_hold_what_was_given(
    tmp_path: Path, sizes: list[int], refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = [os.urandom(size) for size in sizes]
    data, path = Hashed(chunks), tmp_path / "x"
    open_, write = os.open, os.write

    def opened(path: Path, flags: int, mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return open_(path, flags, mode)

    def written(descriptor: int, chunk: bytes) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(descriptor, chunk)

    if refused == "opening":
        monkeypatch.setattr(os, "open", opened)
    elif refused == "writing":
        monkeypatch.setattr(os, "write", written)
    write_large_file(path, data)
    monkeypatch.undo()
    assert path.read_bytes() == b"".join(chunks) and path.stat().st_size == data.size
    with pytest.raises(FileExistsError):
        write_large_file(path, chunks)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, chunk: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_large_file(tmp_path / "x", [bytes(BUFFER)])


def test_a_large_checkpoint_is_written_directly_and_every_flipped_bit_of_it_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct: list[str] = []

    def wrapped(path: Path, chunks: Hashed) -> None:
        direct.append(path.name)
        write_large_file(path, chunks)

    monkeypatch.setattr("orchestrator.storage.write_large_file", wrapped)
    weight = torch.randn(direct_files.LARGE // 4)
    state = {"block1": {"model.w": weight}, "block2": {"model.v": weight[:5]}}
    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(1, state, plan_hash="ab", rule={}, metrics=None)
    assert direct == ["block1.safetensors"]
    assert torch.equal(checkpoints.load(1).state["block1"]["model.w"], weight)
    path = tmp_path / "step-00000001" / "block1.safetensors"
    for place in (0, 20, 5000, path.stat().st_size - 1):
        with path.open("r+b") as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 4]))
        with pytest.raises(UserError, match=r"is damaged \(its xxh3_128 is not the manifest's\)"):
            checkpoints.load(1)
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([byte]))
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(UserError, match="and should have"):
        checkpoints.load(1)


def _as_of_version_1(directory: Path) -> None:
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"], manifest["format"]
    for entry in manifest["files"].values():
        del entry["xxh3_128"]
        entry["sha256"] = hashlib.sha256((directory / entry["name"]).read_bytes()).hexdigest()
    path.write_bytes(sealed(manifest, 1))


@pytest.mark.usefixtures("no_fsync")
def test_checkpoints_of_version_1_are_read_and_verified(tmp_path: Path) -> None:
    save(tmp_path, 1, 1)
    _as_of_version_1(tmp_path / "step-00000001")
    assert seed_of(tmp_path, 1) == 1
    path = tmp_path / "step-00000001" / "block1.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError, match="its sha256 is not the manifest's"):
        checkpoints_in(tmp_path).load(1)


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("sums", [{}, {"xxh3_128": "0", "sha256": "0"}])
def test_a_file_has_one_checksum(tmp_path: Path, sums: dict[str, str]) -> None:
    save(tmp_path, 1, 1)
    path = tmp_path / "step-00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"], manifest["format"]
    assert set(manifest["files"]) == set(make_state(1))
    entry = manifest["files"]["block1"]
    manifest["files"]["block1"] = {"name": entry["name"], "size": entry["size"], **sums}
    path.write_bytes(sealed(manifest, 2))
    with pytest.raises(UserError, match="is not a manifest"):
        checkpoints_in(tmp_path).load(1)
