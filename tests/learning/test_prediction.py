"""A trained network with its preprocessing: raw rows of any form in, labels out, or a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from learning.data import Batches, Preprocessing, TextSettings, arrays_dataset, load_dataset
from learning.data.settings import AugmentSettings
from learning.errors import UserError
from learning.prediction import Trained
from learning.settings import PrecisionSettings

RANDOM = np.random.default_rng(5)
LABELS = np.arange(40) % 3
PIXELS = RANDOM.integers(0, 256, (40, 2, 4, 4), dtype=np.uint8)
UNITS = np.array([1e-30, 1, 1e30, 7])
RAW: dict[str, np.ndarray] = {
    "pixels": PIXELS,
    "numbers": RANDOM.normal(size=(40, 4)).astype(np.float32),
    "units": (RANDOM.normal(size=(40, 4)) * UNITS).astype(np.float32),
    "double": RANDOM.normal(size=(40, 4)) * UNITS + 1.7e9,
}


class Mode(nn.Module):
    """Adds a number in training mode, so that the mode shows in the scores."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if self.training else x


def trained(kind: str, batch: int = 7, compute: Any = "float32") -> tuple[Trained, Batches]:
    x = RAW[kind]
    data = arrays_dataset(x, LABELS, x, LABELS)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].size, 3), Mode())
    precision = PrecisionSettings(compute=compute)
    if compute == "float64":
        model.double()
    batches = Batches(data, seed=0, batch=8, augment=AugmentSettings())
    return Trained(model, data.preprocessing, precision, batch, "checkpoint 1 of a run"), batches


@pytest.mark.parametrize("compute", ["float32", "float64"])
@pytest.mark.parametrize("kind", RAW)
def test_raw_rows_are_seen_with_the_bits_of_training(kind: str, compute: str):
    one, batches = trained(kind, compute=compute)
    x = torch.cat([x for x, _ in batches.evaluation("test", 7)])
    x = x.double() if compute == "float64" else x
    one.model.eval()
    with torch.no_grad():
        parts = [one.model(part) for part in x.split(7)]
        expected, whole = torch.cat(parts), one.model(x)
    found = torch.from_numpy(one.scores(RAW[kind]))
    assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert one.predict(RAW[kind]).tolist() == expected.argmax(-1).tolist()
    # As a module, for what takes one: the same bits without NumPy.
    from_raw = one.from_raw()
    assert torch.equal(from_raw(torch.from_numpy(RAW[kind])).detach(), whole)
    example = one.raw_example()
    assert example.dtype == torch.from_numpy(RAW[kind]).dtype
    assert from_raw(example).shape == (2, 3)


@pytest.mark.parametrize("kind", ["pixels", "double"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_another_type_is_given_its_own(kind: str, dtype: torch.dtype):
    one, batches = trained(kind, batch=40)
    one.model.to(dtype).eval()
    x = torch.cat([x for x, _ in batches.evaluation("test", 40)])
    with torch.no_grad():
        expected = one.model(x.to(dtype))
    found = torch.from_numpy(one.scores(RAW[kind]))
    assert torch.equal(found, expected.float() if dtype == torch.bfloat16 else expected)
    assert torch.equal(one.from_raw()(torch.from_numpy(RAW[kind])), expected)


def test_what_takes_rows_takes_arrays_tensors_and_lists():
    for kind in ("pixels", "numbers", "double"):
        one, _ = trained(kind)
        x = RAW[kind]
        expected = one.scores(x)
        for given in (torch.from_numpy(x), x.tolist(), [*x], np.asfortranarray(x)):
            assert np.array_equal(one.scores(given), expected)
    one, _ = trained("numbers")
    whole = np.arange(8).reshape(2, 4)
    assert np.array_equal(one.scores(whole.tolist()), one.scores(whole.astype(np.float32)))
    assert np.array_equal(
        one.scores(torch.from_numpy(whole).bfloat16()), one.scores(whole.astype(np.float32))
    )


def test_predicting_leaves_the_modes_and_asks_for_no_gradient():
    one, _ = trained("numbers")
    one.model.get_submodule("1").eval()
    before = [module.training for module in one.model.modules()]
    scores = one.scores(RAW["numbers"])
    assert (
        [module.training for module in one.model.modules()] == before == [True, True, False, True]
    )
    assert np.array_equal(scores, one.scores(RAW["numbers"]))
    assert all(p.grad is None for p in one.model.parameters())


NAN = np.full((1, 4), np.nan, np.float32)


@pytest.mark.parametrize(
    ("kind", "x", "said"),
    [
        ("numbers", RAW["numbers"][0], r"x has the shape \(4,\).*takes \(n, 4\): give one row as"),
        ("numbers", np.zeros((2, 5), np.float32), r"x has the shape \(2, 5\)"),
        ("numbers", np.zeros((0, 4), np.float32), r"x has the shape \(0, 4\)"),
        ("numbers", 3.0, r"x has the shape \(\)"),
        ("numbers", [[1.0, 2.0, 3.0, 4.0], [1.0]], "x is no array .*lists of one length"),
        ("numbers", [[1.0, "a", 3.0, 4.0]], "x is <U32 and the network was trained on float32"),
        ("numbers", PIXELS[:, 0, 0], "x is uint8 and the network was trained on float32 rows"),
        ("numbers", np.zeros((2, 4), np.int64), "x is int64 and the network"),
        ("numbers", np.zeros((2, 4), np.complex64), "x is complex64 and the network"),
        ("numbers", NAN, "row 0 of x holds the value nan: values must be finite"),
        ("numbers", [[0.0, 0.0, 0.0, 1e39]], "row 0 of x holds the value inf"),
        ("units", [[3e38, 0.0, 0.0, 0.0]], r"row 0 of x holds the value 3\S*e\+38: it is so far"),
        ("pixels", PIXELS / 255, "x is float64 and the network was trained on uint8 rows, 0 to"),
        ("pixels", PIXELS.astype(int), "x is int64 and the network was trained on uint8"),
        ("pixels", (PIXELS.astype(int) + 9).tolist(), "x is int64 and the network was trained on"),
        ("pixels", PIXELS.transpose(0, 2, 3, 1), r"x has the shape \(40, 4, 4, 2\)"),
        ("pixels", "text", r"x is no array of numbers \(it is a str\)"),
    ],
)
def test_rows_that_are_not_those_of_training_are_refused(kind: str, x: Any, said: str):
    with pytest.raises(UserError, match=said) as caught:
        trained(kind)[0].predict(x)
    assert len(str(caught.value)) < 300


def test_text_is_read_by_the_vocabulary_of_training(tmp_path: Path):
    (tmp_path / "a.txt").write_text("abcabdabe " * 40, encoding="utf-8")
    data = load_dataset(TextSettings(path=tmp_path / "a.txt", context=6))
    known = data.preprocessing
    assert (known.vocabulary, known.classes, known.input_shape) == (" abcde", 6, (6,))
    following = nn.Embedding.from_pretrained(torch.eye(6).roll(1, 1))  # by the next letter
    one = Trained(nn.Sequential(following), known, PrecisionSettings(), 3, "checkpoint 1 of a run")
    assert one.predict("abcd e").tolist() == [[2, 3, 4, 5, 1, 0]]
    assert one.predict(["ab", "de"]).tolist() == [[2, 3], [5, 0]]
    assert one.predict([[1, 2, 3, 4, 0, 5]]).tolist() == one.predict("abcd e").tolist()
    assert one.from_raw()(one.raw_example()).shape == (2, 6, 6)
    for x, said in (
        ("abx", r"the character 'x' at position 2 is none of the 6"),
        ("abcdeab", r"x has the shape \(1, 7\) and the network takes \(n, 6\)"),
        ([[0, 6]], "x holds the token 6, and the network knows 0 to 5"),
        ([[0.5, 1.0]], "x is float64 and the network was trained on tokens"),
        (["a", "bc"], "x is no array"),
        ("", r"x has the shape \(1, 0\)"),
    ):
        with pytest.raises(UserError, match=said):
            one.predict(x)


def test_weights_without_preprocessing_are_refused():
    model = nn.Linear(4, 3)
    one = Trained(model, None, PrecisionSettings(), 8, "checkpoint 7 of runs/old")
    for use in (lambda: one.predict(RAW["numbers"]), one.from_raw, one.raw_example):
        with pytest.raises(
            UserError, match="checkpoint 7 of runs/old was written by a version that"
        ):
            use()


def test_the_record_is_enough_for_plain_pytorch():
    """The lines of docs/checkpoints.md, for each type of rows."""
    for kind, rows in RAW.items():
        one, _ = trained(kind)
        p = one.known.model_dump(mode="json")
        view = (-1, *[1] * (len(p["input_shape"]) - 1))
        dtype = torch.float64 if p["rows"] == "float64" else torch.float32
        scale, mean, std = (
            torch.tensor(p[k], dtype=dtype).view(view) for k in ("scale", "mean", "std")
        )
        x = ((torch.as_tensor(rows) / scale - mean) / std).float()
        assert torch.equal(x, Preprocessing.model_validate(p).apply(rows))
