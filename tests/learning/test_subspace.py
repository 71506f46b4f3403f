"""Subspace codec: lossless for a stream that stays in the subspace, and only for that."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from learning.errors import UserError
from learning.subspace import Subspace

WIDTH, RANK, VOCABULARY = 12, 4, 7


def subspace(rank: int = RANK, seed: int = 0) -> Subspace:
    return Subspace(WIDTH, rank, VOCABULARY, seed)


class Writer(nn.Module):
    """Learned embeddings and a residual layer that reads the stream through a norm."""

    def __init__(self, codec: Subspace) -> None:
        super().__init__()
        self.codec = codec
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.norm, self.up, self.down = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 20),
            nn.Linear(20, WIDTH),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.codec.embed(tokens, self.embedding.weight.dtype) + self.embedding(tokens)
        return h + self.down(torch.relu(self.up(self.norm(h))))

    def project(self) -> None:
        self.codec.project_(self.embedding.weight, -1)
        self.codec.project_(self.down.weight)
        self.codec.project_(self.down.bias)


def writer(seed: int, codec: Subspace) -> tuple[Writer, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Writer(codec).double(), torch.randint(VOCABULARY, (3, 5))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, WIDTH), st.integers(0, 9))
def test_round_trip_is_exact_after_projection(seed: int, rank: int, of_run: int) -> None:
    codec = subspace(rank, of_run)
    model, tokens = writer(seed, codec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)  # leaves the subspace
    for _ in range(2):
        model(tokens).square().sum().backward()
        optimizer.step()
        model.project()
    h = model(tokens)
    message = codec.encode("x", h, tokens)
    assert message["x"].shape == (3, 5, rank)
    assert not message["x"].requires_grad and message["x"].is_contiguous()
    assert torch.equal(message["x.tokens"], tokens)
    decoded = codec.decode(message, "x", torch.float64)
    torch.testing.assert_close(decoded, h.detach(), rtol=0, atol=1e-13)
    again = codec.encode("x", decoded, tokens)["x"]
    torch.testing.assert_close(again, message["x"], rtol=0, atol=1e-13)


def test_without_projection_something_is_lost() -> None:
    codec = subspace()
    model, tokens = writer(0, codec)
    h = model(tokens).detach()
    decoded = codec.decode(codec.encode("x", h, tokens), "x", torch.float64)
    assert (decoded - h).abs().max() > 0.1


def test_full_rank_loses_nothing() -> None:
    codec = subspace(WIDTH)
    model, _ = writer(0, codec)
    before = model.down.weight.detach().clone()
    model.project()
    torch.testing.assert_close(model.down.weight.detach(), before, rtol=0, atol=1e-14)


def test_the_basis_is_orthonormal_and_a_function_of_the_seed() -> None:
    codec = subspace()
    eye = torch.eye(RANK, dtype=torch.float64)
    torch.testing.assert_close(codec.basis.T @ codec.basis, eye, rtol=0, atol=1e-14)
    torch.manual_seed(3)
    other = subspace()
    assert torch.equal(other.basis, codec.basis) and torch.equal(other.table, codec.table)
    assert not torch.equal(subspace(seed=1).basis, codec.basis)
    drawn = torch.rand(())
    torch.manual_seed(3)
    assert torch.equal(torch.rand(()), drawn), "the global generator was used"


def test_projection_is_idempotent_and_by_hand() -> None:
    codec = subspace(1)
    codec.basis = torch.zeros(WIDTH, 1, dtype=torch.float64)
    codec.basis[0], codec.basis[1] = 0.6, 0.8  # the plane's direction (3, 4)
    weight = torch.zeros(WIDTH, 2, dtype=torch.float64)
    weight[0, 0], weight[1, 1] = 5.0, 5.0
    codec.project_(weight)
    expected = torch.zeros(WIDTH, 2, dtype=torch.float64)
    expected[:2] = torch.tensor([[1.8, 2.4], [2.4, 3.2]], dtype=torch.float64)  # 5 u u^T
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-14)
    embeddings = torch.full((2, 3, WIDTH), 1.0, dtype=torch.float64)
    codec.project_(embeddings, -1)
    row = torch.tensor([0.84, 1.12], dtype=torch.float64)  # (0.6 + 0.8) u
    torch.testing.assert_close(embeddings[1, 2, :2], row, rtol=0, atol=1e-14)
    assert not embeddings[..., 2:].any()


def test_gradients_travel_without_tokens() -> None:
    """What the earlier block's parameters get is the same, whether the gradient was coded or not.

    For parameters behind the projection: their gradients are projected, as their steps are.
    """
    codec = subspace()
    model, tokens = writer(0, codec)
    model.project()
    h = model(tokens)
    gradient = torch.randn(h.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    message = codec.encode("gradient", gradient)
    assert list(message) == ["gradient"] and message["gradient"].shape == (3, 5, RANK)
    arrived = codec.decode(message, "gradient", torch.float64)
    parameters = [model.down.weight, model.up.weight]
    whole = torch.autograd.grad(h, parameters, gradient, retain_graph=True)
    coded = torch.autograd.grad(h, parameters, arrived)
    projected = whole[0].clone()
    codec.project_(projected)
    torch.testing.assert_close(coded[0], projected, rtol=0, atol=1e-13)
    # The last writer is projected, so inside its layer nothing is missing at all.
    torch.testing.assert_close(coded[1], whole[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_and_bytes(dtype: torch.dtype) -> None:
    codec = Subspace(512, 8, VOCABULARY, 0)
    tokens = torch.randint(VOCABULARY, (4, 16))
    c = torch.randn(4, 16, 8)
    h = (codec.embed(tokens, torch.float32) + c @ codec.basis.float().T).to(dtype)
    message = codec.encode("x", h, tokens)
    assert message["x"].dtype == torch.float32
    decoded = codec.decode(message, "x", dtype)
    assert decoded.dtype == dtype
    torch.testing.assert_close(
        decoded,
        h,
        rtol=2**-6 if dtype == torch.bfloat16 else 1e-5,
        atol=1e-2 if dtype == torch.bfloat16 else 1e-5,
    )
    assert sum(t.nbytes for t in message.values()) < h.float().nbytes / 40
    assert torch.equal(codec.decode(codec.encode("x", tokens), "x", dtype), tokens)


def test_a_rank_above_the_width_is_refused() -> None:
    with pytest.raises(UserError, match=r"codec.rank = 13 is above the width 12 .* up to 12"):
        subspace(13)
