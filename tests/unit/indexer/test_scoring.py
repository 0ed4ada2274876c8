"""Scores by their formulas, in plain Python beside numpy, and that equal vectors have equal ones."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from indexer import scoring as scoring_module
from indexer.scoring import Scoring, scores


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    lengths = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def centred(a: Sequence[float]) -> list[float]:
    return [x - sum(a) / len(a) for x in a]


FORMULAS: dict[Scoring, Callable[[Sequence[float], Sequence[float]], float]] = {
    Scoring.COSINE: cosine,
    Scoring.L2: lambda a, b: -math.dist(a, b),
    Scoring.INNER_PRODUCT: lambda a, b: sum(x * y for x, y in zip(a, b, strict=True)),
    Scoring.L1: lambda a, b: -sum(abs(x - y) for x, y in zip(a, b, strict=True)),
    Scoring.CORRELATION: lambda a, b: cosine(centred(a), centred(b)),
}


@pytest.mark.parametrize("scoring", list(Scoring))
def test_a_score_is_what_its_formula_says(scoring: Scoring) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(20, 33)).astype(np.float32)
    query = rng.normal(size=33).astype(np.float32)
    expected = [FORMULAS[scoring](query.tolist(), vector.tolist()) for vector in vectors]
    assert scores(scoring, query, vectors) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("scoring", list(Scoring))
@pytest.mark.parametrize("dimension", [1, 3, 31, 127, 512, 513])
def test_equal_vectors_have_equal_scores_wherever_they_stand(scoring: Scoring, dimension: int) -> None:
    rng = np.random.default_rng(dimension)
    vector, query = rng.normal(size=(2, dimension)).astype(np.float32)
    vectors = rng.normal(size=(67, dimension)).astype(np.float32)
    places = [0, 1, 2, 3, 5, 8, 13, 40, 66]
    vectors[places] = vector
    # Before rounding, which would hide nearly every difference.
    found = scoring_module._exact(scoring, query, vectors)[places].tolist()
    assert set(found) == set(scoring_module._exact(scoring, query, vector[None]).tolist())


def test_what_has_no_direction_has_cosine_0_and_no_cosine_is_beyond_1() -> None:
    vectors = np.array([[0, 0, 0], [0.1, 0.1, 0.1], [-0.1, -0.1, -0.1]], np.float32)
    assert scores(Scoring.COSINE, vectors[1], vectors).tolist() == [0, 1, -1]
    assert scores(Scoring.CORRELATION, vectors[1], vectors).tolist() == [0, 0, 0]
