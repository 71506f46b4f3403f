"""Subspace codec: lossless for a stream that stays in the subspace, and only for that."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from learning.policies.subspace import FixedEmbedding, Subspace, basis, project_, rank_of, table

WIDTH, RANK, VOCABULARY = 12, 4, 7


def subspace(rank: int = RANK) -> Subspace:
    return Subspace(WIDTH, rank, VOCABULARY)


class Writer(nn.Module):
    """Learned embeddings and a residual layer that reads the stream through a norm."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.fixed = FixedEmbedding(WIDTH, rank, VOCABULARY)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.norm, self.up, self.down = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 20),
            nn.Linear(20, WIDTH),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.fixed(tokens) + self.embedding(tokens)
        return h + self.down(torch.relu(self.up(self.norm(h))))

    def project(self) -> None:
        project_(self.embedding.weight, self.rank, -1)
        project_(self.down.weight, self.rank)
        project_(self.down.bias, self.rank)


def writer(seed: int, rank: int = RANK) -> tuple[Writer, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Writer(rank).double(), torch.randint(VOCABULARY, (3, 5))


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, WIDTH))
def test_round_trip_is_exact_after_projection(seed: int, rank: int) -> None:
    codec = subspace(rank)
    model, tokens = writer(seed, rank)
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
    model, tokens = writer(0)
    h = model(tokens).detach()
    decoded = codec.decode(codec.encode("x", h, tokens), "x", torch.float64)
    assert (decoded - h).abs().max() > 0.1


def test_full_rank_loses_nothing() -> None:
    model, _ = writer(0, WIDTH)
    before = model.down.weight.detach().clone()
    model.project()
    torch.testing.assert_close(model.down.weight.detach(), before, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("width", "rank"), [(12, 4), (12, 12), (512, 64), (7, 1)])
def test_the_basis_is_orthonormal_and_dense(width: int, rank: int) -> None:
    u = basis(width, rank)
    assert u.dtype == torch.float64 and u.shape == (width, rank)
    torch.testing.assert_close(u.T @ u, torch.eye(rank, dtype=u.dtype), rtol=0, atol=1e-13)
    assert u.abs().max() <= (2 / width) ** 0.5 + 1e-15


def test_basis_and_table_are_functions_of_their_sizes() -> None:
    before, drawn = basis(WIDTH, RANK).clone(), table(WIDTH, VOCABULARY)
    torch.manual_seed(3)
    basis.cache_clear()
    assert torch.equal(basis(WIDTH, RANK), before)
    assert torch.equal(table(WIDTH, VOCABULARY), drawn)
    assert drawn.std().item() == pytest.approx(0.02, rel=0.3)
    codec, embedding = subspace(), FixedEmbedding(WIDTH, RANK, VOCABULARY)
    assert torch.equal(codec.table, drawn) and torch.equal(embedding.table, drawn)
    number = torch.rand(())
    torch.manual_seed(3)
    assert torch.equal(torch.rand(()), number), "the global generator was used"


def test_networks_say_their_rank() -> None:
    assert rank_of(nn.Sequential(nn.Linear(2, 2), writer(0, 3)[0])) == 3
    assert rank_of(nn.Linear(2, 2)) is None


def test_projection_by_hand() -> None:
    """Rank 1, basis u: 5 e_i becomes 5 u_i u, a row of ones (sum of u) u."""
    u = basis(WIDTH, 1)[:, 0]
    weight = torch.zeros(WIDTH, 2, dtype=torch.float64)
    weight[0, 0], weight[1, 1] = 5.0, 5.0
    project_(weight, 1)
    expected = torch.stack([5 * u[0] * u, 5 * u[1] * u], 1)
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-14)
    project_(weight, 1)
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-14)
    embeddings = torch.full((2, 3, WIDTH), 1.0, dtype=torch.float64)
    project_(embeddings, 1, -1)
    torch.testing.assert_close(embeddings[1, 2], u.sum() * u, rtol=0, atol=1e-14)


def test_gradients_travel_without_tokens() -> None:
    """What the earlier block's parameters get is the same, whether the gradient was coded or not.

    For parameters behind the projection: their gradients are projected, as their steps are.
    """
    codec = subspace()
    model, tokens = writer(0)
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
    project_(projected, RANK)
    torch.testing.assert_close(coded[0], projected, rtol=0, atol=1e-13)
    # The last writer is projected, so inside its layer nothing is missing at all.
    torch.testing.assert_close(coded[1], whole[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_and_bytes(dtype: torch.dtype) -> None:
    codec = Subspace(512, 8, VOCABULARY)
    tokens = torch.randint(VOCABULARY, (4, 16))
    c = torch.randn(4, 16, 8)
    h = (codec.table[tokens] + c @ basis(512, 8).float().T).to(dtype)
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
