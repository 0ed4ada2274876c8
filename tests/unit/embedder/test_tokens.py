"""Texts to token ids."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from embedder import tokens
from embedder.tokens import Tokenizer

WORDS = "dog"


@pytest.fixture
def hugging_face(tmp_path: Path) -> HFTokenizer:
    """A word-level tokenizer with a begin and an end token, as BERT's has."""
    rust = RustTokenizer(WordLevel({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, WORDS: 4}, unk_token="[UNK]"))
    rust.pre_tokenizer = Whitespace()
    rust.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=rust, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    fast.save_pretrained(tmp_path)
    return HFTokenizer(str(tmp_path), context_length=16)


@pytest.fixture
def simple() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=16)


@pytest.mark.parametrize("kind", ["simple", "hugging_face"])
def test_ids_are_the_tokenizers_own_and_only_what_does_not_fit_counts_as_cut(
    kind: str, request: pytest.FixtureRequest
) -> None:
    inner: Any = request.getfixturevalue(kind)
    tokenize = Tokenizer(inner)
    assert tokenize.context_length == 16
    for words, cut in ((1, False), (13, False), (14, False), (15, True), (40, True)):
        text = " ".join([WORDS] * words)
        ids, truncated = tokenize(text)
        assert ids.dtype == np.int64
        assert ids.tolist() == inner([text])[0].tolist()
        assert truncated is cut, words


def test_an_exclamation_mark_at_the_end_is_not_taken_for_padding(simple: SimpleTokenizer) -> None:
    assert simple.encoder["!"] == 0
    assert Tokenizer(simple)("a ! " * 7)[1] is False
    assert Tokenizer(simple)("a ! " * 8)[1] is True


@pytest.mark.parametrize("kind", ["simple", "hugging_face"])
def test_many_threads_may_tokenize_at_once(kind: str, request: pytest.FixtureRequest) -> None:
    tokenize = Tokenizer(request.getfixturevalue(kind))
    texts = [" ".join([WORDS] * (1 + n % 30)) for n in range(400)]
    expected = [tokenize(text)[0].tolist() for text in texts]
    with ThreadPoolExecutor(8) as threads:
        assert [ids.tolist() for ids, _ in threads.map(tokenize, texts)] == expected


def test_the_words_it_remembers_are_bounded(simple: SimpleTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_REMEMBERED_WORDS", 50)
    tokenize = Tokenizer(simple)
    for number in range(200):
        tokenize("".join(chr(97 + (number * k) % 26) for k in range(1, 8)))
        assert len(simple.cache) <= 51
    assert tokenize("a dog")[0].tolist() == SimpleTokenizer(context_length=16)(["a dog"])[0].tolist()


def test_a_special_token_stays_one_token_after_forgetting(
    simple: SimpleTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Tokenizer(simple)("<end_of_text> a dog")[0].tolist()
    monkeypatch.setattr(tokens, "_REMEMBERED_WORDS", 0)
    tokenize = Tokenizer(simple)
    tokenize("forget everything")
    assert tokenize("<end_of_text> a dog")[0].tolist() == before


def test_a_tokenizer_that_drops_at_random_is_refused() -> None:
    with pytest.raises(TypeError, match="random"):
        Tokenizer(SimpleTokenizer(reduction_mask="random"))
    with pytest.raises(TypeError, match="no tokenizer of open_clip"):
        Tokenizer(str)
