"""The cache of decoded images: what is believed, what is rebuilt, and what is never followed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learning.data import cache, cache_directory, files, parquet
from learning.errors import UserError
from tests.learning.pictures import encode, pictures, read, write


@pytest.mark.parametrize("ending", ["-x.npy", "-y.npy", ".json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "delete"])
def test_a_damaged_entry_is_rebuilt(source, decoded, ending, damage):
    expected = np.array(read(source)[0])
    (path,) = (source.parent / "cache").glob(f"*{ending}")
    content = path.read_bytes()
    path.unlink()
    if damage == "truncate":
        path.write_bytes(content[:-3])
    elif damage == "flip":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "empty":
        path.write_bytes(b"")
    x, y = read(source)
    assert len(decoded) == 24 and np.array_equal(x, expected) and y.tolist() == [0, 1, 2] * 4
    read(source)
    assert len(decoded) == 24


def test_a_changed_file_is_decoded_again_though_its_size_and_time_stay(source, decoded):
    first, other = (encode(pictures(1, seed=seed)[0], "bmp") for seed in (0, 9))
    pq.write_table(pa.table({"label": [0, 1], "image": [first, first]}), source, compression="none")
    read(source)
    before = source.stat()
    source.write_bytes(source.read_bytes().replace(first, other))
    assert source.stat().st_size == before.st_size
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_mtime_ns == before.st_mtime_ns
    assert np.array_equal(read(source)[0][0], pictures(1, seed=9)[0].transpose(2, 0, 1))
    assert len(decoded) == 4


def test_a_file_that_was_touched_or_moved_is_not_decoded_again(source, decoded):
    read(source)
    os.utime(source, ns=(0, 12345))
    read(source)
    read(source.rename(source.with_name("b.parquet")))
    assert len(decoded) == 12


def test_an_open_entry_survives_a_rebuild(source):
    x, _ = read(source)
    expected = np.array(x)
    next((source.parent / "cache").glob("*.json")).unlink()
    read(source)
    assert np.array_equal(x, expected)


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("BLOCKLOCAL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory(None) == tmp_path / ".cache/blocklocal"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory(None) == Path("/xdg/blocklocal")
    monkeypatch.setenv("BLOCKLOCAL_CACHE", "/own")
    assert cache_directory(None) == Path("/own")
    assert cache_directory(Path("~/chosen")) == tmp_path / "chosen"


def test_a_cache_that_cannot_be_written_is_refused(source):
    (source.parent / "cache").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"cannot write the cache .* set data\.cache"):
        read(source)


def entry_files(source: Path) -> dict[str, Path]:
    return {path.name[32:]: path for path in (source.parent / "cache").iterdir()}


@pytest.mark.parametrize("ending", ["-x.npy", "-y.npy", ".json"])
def test_links_in_the_cache_are_neither_followed_nor_written_through(source, decoded, ending):
    expected = np.array(read(source)[0])
    path = entry_files(source)[ending]
    elsewhere = path.rename(source.with_name("elsewhere"))
    content = elsewhere.read_bytes()
    path.symlink_to(elsewhere)  # to what would even be right
    x, _ = read(source)
    assert len(decoded) == 24 and np.array_equal(x, expected)
    assert not path.is_symlink() and elsewhere.read_bytes() == content


def test_a_pipe_in_the_cache_is_replaced_and_not_waited_for(source, decoded):
    read(source)
    path = entry_files(source)["-x.npy"]
    path.unlink()
    os.mkfifo(path)
    assert len(read(source)[0]) == 12 and len(decoded) == 24


def test_a_folder_in_the_place_of_an_entry_is_one_sentence(source):
    read(source)
    path = entry_files(source)["-x.npy"]
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"cannot write the cache .* set data\.cache"):
        read(source)


def entry_of(source: Path) -> cache.CacheEntry:
    return cache.CacheEntry.of(source.parent / "cache", source, ("image", "label"), None)


def test_an_entry_of_another_file_is_not_taken_for_this_ones(source, decoded):
    read(source)
    mine = entry_of(source)
    other = write(source.with_name("b.parquet"), [encode(pictures(1)[0])] * 3, [0, 1, 2])
    read(other)
    for path in (mine.images, mine.labels, mine.manifest):  # a whole entry, under another name
        path.write_bytes(
            (path.parent / path.name.replace(mine.key, entry_of(other).key)).read_bytes()
        )
    assert len(read(source)[0]) == 12 and len(decoded) == 12 + 3 + 12


@pytest.mark.parametrize("wrong", ["float", "flat", "short", "object", "deep"])
def test_a_sealed_entry_of_the_wrong_kind_is_rebuilt(source, decoded, wrong):
    read(source)
    entry = entry_of(source)
    if wrong == "deep":
        entry.manifest.write_text("[" * 4000)
    else:
        content = {"float": np.zeros((12, 3, 4, 5)), "flat": np.zeros(12, np.uint8)}
        content["short"] = np.zeros((11, 3, 4, 5), np.uint8)
        np.save(entry.images, content.get(wrong, np.array([None])), allow_pickle=True)
        entry.seal()
    assert read(source)[0].shape == (12, 3, 4, 5) and len(decoded) == 24


def test_a_file_that_changes_while_it_is_decoded_is_one_sentence(source, monkeypatch):
    original = parquet.decode_image

    def meddling(data: bytes) -> np.ndarray:
        with source.open("ab") as file:
            file.write(b"more")
        return original(data)

    monkeypatch.setattr(parquet, "decode_image", meddling)
    with pytest.raises(UserError, match="was changed while it was decoded"):
        read(source)
    assert ".json" not in entry_files(source)


def test_a_full_disk_is_told_before_it_is_full(source, monkeypatch):
    usage = parquet.shutil.disk_usage(source.parent)
    monkeypatch.setattr(parquet.shutil, "disk_usage", lambda path: usage._replace(free=719))
    with pytest.raises(UserError, match=r"12 images of the shape .*, 720 bytes, but 719 bytes"):
        read(source)
    assert entry_files(source) == {}


def test_the_manifest_says_what_was_decoded(source):
    read(source, limit=5)
    written = json.loads(entry_files(source)[".json"].read_text())
    assert written["content"] == files.checksum_of(source)
    assert written["columns"] == ["image", "label"] and written["limit"] == 5


def test_folders_that_cannot_be_are_refused(monkeypatch):
    for folder in (Path("~nobody-has-this-name/x"), Path("a\0b")):
        with pytest.raises(UserError, match="folder"):
            cache_directory(folder)
