"""What is read from a socket is what was written, or an error."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import frames
from learning.messages import Key

ARRAYS = st.dictionaries(
    st.sampled_from(["x", "y", "gradient", "d:bfloat16"]),
    st.builds(
        lambda dtype, shape, seed: (np.random.default_rng(seed).random(shape) * 100).astype(dtype),
        st.sampled_from(["f4", "f8", "f2", "i8", "i2", "u1", "?"]),
        st.lists(st.integers(0, 5), max_size=4).map(tuple),
        st.integers(0, 9),
    ),
)
KEYS = st.builds(
    Key,
    st.sampled_from(["x", "g", "table"]),
    st.integers(0, 10**9),
    st.integers(0, 64),
    st.integers(0, 99),
    st.sampled_from(["", "test"]),
)


@given(sent=st.lists(st.tuples(KEYS, ARRAYS), max_size=4))
def test_what_is_read_is_what_was_written(sent: list[tuple[Key, dict[str, np.ndarray]]]) -> None:
    left, right = socket.socketpair()
    with left, right:
        for key, arrays in sent:
            frames.write(left, key, arrays)
        left.shutdown(socket.SHUT_WR)
        reader = frames.Reader(right)
        for key, arrays in sent:
            found = reader.read()
            assert found is not None
            assert found[0] == key and isinstance(found[0], Key)
            assert list(found[1]) == list(arrays)
            for name, array in arrays.items():
                got = found[1][name]
                assert (got.dtype, got.shape) == (array.dtype, array.shape)
                assert got.tobytes() == array.tobytes()
                assert got.__array_interface__["data"][0] % 64 == 0 or not got.size
        assert reader.read() is None


def test_half_a_message_and_arrays_of_objects_are_errors() -> None:
    left, right = socket.socketpair()
    with left, right:
        frames.write(left, Key("x", 1), {"x": np.ones(3)})
        whole = right.recv(4096)
        left.sendall(whole[:-1])
        left.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError, match="within a message"):
            frames.Reader(right).read()
    left, right = socket.socketpair()
    with left, right:
        left.sendall(whole.replace(b'"<f8"', b'"|O8"'))
        with pytest.raises(ValueError, match="dtype"):
            frames.Reader(right).read()


def test_a_header_longer_than_any_message_has_is_an_error_before_memory_is_taken() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall((frames.HEADER_BYTES + 1).to_bytes(4, "big") + b"[")
        with pytest.raises(ValueError, match=f"a header of {frames.HEADER_BYTES + 1} bytes"):
            frames.Reader(right).read()


def test_a_message_of_more_arrays_than_a_header_holds_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frames, "HEADER_BYTES", 100)
    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(ValueError, match="a message of 9 arrays"):
            frames.write(left, Key("x", 0), {f"array{i}": np.ones(1) for i in range(9)})
        left.shutdown(socket.SHUT_WR)
        assert frames.Reader(right).read() is None


@pytest.mark.parametrize("header", [b"[" * 100_000, b"{}", b"\xff", b'[["x", 0], [["a", "<f4"]]]'])
def test_a_header_that_is_none_is_an_error_of_its_own(header: bytes) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(len(header).to_bytes(4, "big") + header)
        with pytest.raises(ValueError, match="header that is none"):
            frames.Reader(right).read()
