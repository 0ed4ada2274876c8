"""Weights become integers with a scale for each group, and what cannot gain by it is left alone."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13

from embedder.backends import eight_bit
from embedder.backends.openvino_formats import native_precisions

Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def product(weights: Matrix, *, transposed: bool = True) -> Any:
    """A model of one matrix product: [n, inputs] × [outputs, inputs] transposed."""
    rows = opset13.parameter([-1, weights.shape[1 if transposed else 0]], np.float32)
    return openvino.Model([opset13.matmul(rows, opset13.constant(weights), False, transposed)], [rows])


def weights_of(model: Any) -> Matrix:
    """[outputs, inputs], as it multiplies with them; rows are not rounded."""
    inputs = model.inputs[0].get_partial_shape()[1].get_length()
    options = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_PRECISION_HINT": "f32"}
    found: Matrix = openvino.compile_model(model, "CPU", options)([np.eye(inputs, dtype=np.float32)])[0]
    return found.T


@pytest.fixture
def weights() -> Matrix:
    return np.random.default_rng(0).standard_normal((96, 128)).astype(np.float32)


def test_a_weight_is_off_by_half_a_step_of_its_own_group_at_most(weights: Matrix) -> None:
    weights[5, 40] = 1000
    model = product(weights)
    eight_bit.quantise(model, 32)
    off = np.abs(weights_of(model) - weights).reshape(96, 4, 32)
    steps = np.abs(weights).reshape(96, 4, 32).max(axis=2, keepdims=True) / 127
    assert (off <= steps * 0.501).all()
    assert off.max() > 0
    assert off[5, 0].max() < 0.02, "the large one's neighbours in another group"


@pytest.mark.skipif("int8" not in native_precisions(), reason="this CPU has no VNNI instructions")
def test_what_comes_in_is_rounded_in_groups_too(weights: Matrix) -> None:
    weights[:, :32] = 0
    model = product(weights)
    eight_bit.quantise(model, 32)
    rows = np.random.default_rng(1).standard_normal((7, 128)).astype(np.float32)
    rows[0, 3] = 1000  # spoils a group that adds nothing; with a scale of its row it would be 26 off
    options = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32", "INFERENCE_PRECISION_HINT": "f32"}
    found = openvino.compile_model(model, "CPU", options)([rows])[0]
    off = np.abs(found - rows @ weights_of(model).T).max(axis=1)
    assert (off > 1e-4).all(), "not rounded"
    assert (off < 0.5).all()


def test_nothing_but_zeros_stays_nothing(weights: Matrix) -> None:
    weights[3] = 0
    model = product(weights)
    eight_bit.quantise(model, 64)
    assert (weights_of(model)[3] == 0).all()


def test_a_product_that_does_not_divide_into_groups_stays_as_it_is(weights: Matrix) -> None:
    model = product(weights[:, :100].copy())
    eight_bit.quantise(model, 64)
    assert np.array_equal(weights_of(model), weights[:, :100])


def test_weights_that_lie_the_other_way_stay_as_they_are(weights: Matrix) -> None:
    model = product(weights, transposed=False)
    eight_bit.quantise(model, 32)
    assert np.array_equal(weights_of(model), weights.T)


@pytest.mark.parametrize(("beyond", "worth"), [(0, True), (1, False)])
def test_few_weights_are_not_worth_trying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Matrix, beyond: int, worth: bool
) -> None:
    monkeypatch.setattr(eight_bit, "_WORTH_TRYING", weights.size + beyond)
    file = tmp_path / "image.bin"
    file.write_bytes(bytes(2 * weights.nbytes))
    assert eight_bit.is_worth_trying(product(weights), file) is worth
    file.write_bytes(bytes(2 * weights.nbytes + 1))  # most of the tower is something else
    assert not eight_bit.is_worth_trying(product(weights), file)
