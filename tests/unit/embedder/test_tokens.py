"""Texts to token ids."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip.tokenizer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from embedder.spec import TokenizerSpec
from embedder.tokenizer_export import tokenizer_spec
from embedder.tokens import CLEANING, Tokenizer
from tests.unit.embedder.test_tokenizer_export import hugging_face_in, padded

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def hugging_face(tmp_path: Path) -> HFTokenizer:
    return hugging_face_in(tmp_path)


@pytest.fixture
def simple() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=16)


@pytest.mark.parametrize("kind", ["simple", "hugging_face"])
def test_only_what_does_not_fit_counts_as_cut(kind: str, request: pytest.FixtureRequest) -> None:
    inner: Any = request.getfixturevalue(kind)
    spec = tokenizer_spec(inner)
    tokenize = Tokenizer(spec)
    assert tokenize.context_length == 16
    for words, cut in ((1, False), (13, False), (14, False), (15, True), (40, True)):
        text = " ".join(["dog"] * words)
        ids, truncated = tokenize(text)
        assert ids.dtype == np.int64
        assert ids.shape == (min(words, 14) + 2,)
        assert padded(ids, spec) == inner([text])[0].tolist()
        assert truncated is cut, words


def test_an_exclamation_mark_at_the_end_is_not_taken_for_padding(simple: SimpleTokenizer) -> None:
    assert simple.encoder["!"] == 0
    tokenize = Tokenizer(tokenizer_spec(simple))
    assert tokenize("a ! " * 7)[1] is False
    assert tokenize("a ! " * 8)[1] is True
    assert tokenize("!")[0].tolist() == [simple.sot_token_id, simple.encoder["!</w>"], simple.eot_token_id]


def test_a_text_of_nothing_is_its_begin_and_end(simple: SimpleTokenizer) -> None:
    ids, truncated = Tokenizer(tokenizer_spec(simple))(" \n ")
    assert (ids.tolist(), truncated) == ([simple.sot_token_id, simple.eot_token_id], False)


@pytest.mark.parametrize("kind", ["simple", "hugging_face"])
def test_many_threads_may_tokenize_at_once(kind: str, request: pytest.FixtureRequest) -> None:
    tokenize = Tokenizer(tokenizer_spec(request.getfixturevalue(kind)))
    texts = [" ".join(["dog"] * (1 + n % 30)) for n in range(400)]
    expected = [tokenize(text)[0].tolist() for text in texts]
    with ThreadPoolExecutor(8) as threads:
        assert [ids.tolist() for ids, _ in threads.map(tokenize, texts)] == expected


def test_a_word_without_end_is_quick() -> None:
    tokenize = Tokenizer(tokenizer_spec(SimpleTokenizer()))
    letters = np.random.default_rng(1).integers(97, 117, (5, 2048))
    words = [bytes(row.tolist()).decode() for row in letters]
    tokenize(words[0])
    begun = time.process_time()
    for word in words[1:]:
        assert tokenize(word)[1] is True
    # 2 ms each; open_clip's own tokenizer takes 300 ms.
    assert (time.process_time() - begun) / 4 < 0.1


@settings(deadline=None)
@given(st.text())
def test_texts_are_cleaned_as_open_clip_cleans_them(text: str) -> None:
    for name, clean in CLEANING.items():
        assert clean(text) == open_clip.tokenizer.get_clean_fn(name)(text)


def test_an_unknown_kind_or_cleaning_is_refused(simple: SimpleTokenizer) -> None:
    spec = tokenizer_spec(simple)
    with pytest.raises(KeyError, match="magic"):
        Tokenizer(TokenizerSpec(spec.definition, 16, "magic", 0, spec.options))
    with pytest.raises(KeyError, match="odd"):
        Tokenizer(TokenizerSpec(spec.definition, 16, "lower", 0, {"kind": "odd"}))


def test_the_front_needs_neither_torch_nor_open_clip() -> None:
    script = """
import sys
import embedder.tokens, embedder.preprocess, embedder.decode
print(*sorted({"torch", "torchvision", "open_clip", "transformers", "timm"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
