"""open_clip's tokenizers, carried over to the tokenizers library."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import Unigram, WordLevel
from tokenizers.pre_tokenizers import Metaspace, Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from embedder.inputs import Tokens
from embedder.spec import TokenizerSpec
from embedder.starter.towers import load_towers
from embedder.tokenizer_export import tokenizer_spec
from embedder.tokens import Tokenizer

# Words that CLIP's vocabulary joins, beside whatever hypothesis thinks of.
FRAGMENTS = ["a photo of", "dog", "running", "it's", "'S", "'ſ", "<end_of_text>", "<Start_Of_Text>", "&amp;", "1/2", "ͅ"]
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4))).map("".join),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text("etaoinshrdlu", max_size=9))).map(" ".join),
)


def hugging_face_in(folder: Path, **options: Any) -> HFTokenizer:
    """A word-level tokenizer with a begin and an end token, as BERT's has."""
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "dog": 4, "cat": 5, "[BOS]": 6, "[EOS]": 7}
    rust = RustTokenizer(WordLevel(words, unk_token="[UNK]"))
    rust.pre_tokenizer = Whitespace()
    rust.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=rust,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
    )
    fast.save_pretrained(folder)
    return HFTokenizer(str(folder), **{"context_length": 16, **options})


def sig_lip() -> SigLipTokenizer:
    """Its own constructor downloads a vocabulary; this one has a few pieces and an end token, as T5's has."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁dog", -3.0), ("s", -4.0), ("d", -5.0)]
    rust = RustTokenizer(Unigram(pieces, unk_id=2))
    rust.pre_tokenizer = Metaspace()
    rust.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = SigLipTokenizer.__new__(SigLipTokenizer)
    tokenizer.tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=rust, pad_token="</s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.context_length = 12
    return tokenizer


def padded(ids: Tokens, spec: TokenizerSpec) -> list[int]:
    row: list[int] = ids.tolist()
    return row + [spec.pad_id] * (spec.context_length - len(row))


@cache
def simple() -> tuple[SimpleTokenizer, TokenizerSpec, Tokenizer]:
    tokenizer = SimpleTokenizer()
    spec = tokenizer_spec(tokenizer)
    return tokenizer, spec, Tokenizer(spec)


@cache
def starter() -> tuple[HFTokenizer, TokenizerSpec, Tokenizer]:
    tokenizer = load_towers().tokenizer
    spec = tokenizer_spec(tokenizer)
    return tokenizer, spec, Tokenizer(spec)


@pytest.mark.parametrize("kind", [simple, starter])
@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
@example(text="a ! " * 60)
@example(text="supercalifragilisticexpialidocious" * 20)
def test_any_text_gets_the_very_ids_that_open_clip_gives(kind: Any, text: str) -> None:
    tokenizer, spec, exported = kind()
    ids, truncated = exported(text)
    assert padded(ids, spec) == tokenizer([text])[0].tolist()
    if kind is simple:
        assert truncated is (len(tokenizer.encode(text)) + 2 > spec.context_length)
    else:
        whole = tokenizer.tokenizer(tokenizer.clean_fn(text), truncation=False, verbose=False)["input_ids"]
        assert truncated is (len(whole) > spec.context_length)


def test_every_character_gets_the_very_ids_that_open_clip_gives() -> None:
    tokenizer, spec, exported = simple()
    # Between a letter, a digit and a sign: where it splits shows what it is taken for. Every 97th, and all that the
    # regular expressions of the two libraries disagree about below U+10000.
    points = [*range(0, 0x20000, 97), 0x345, 0x558, 0x58B, 0x88F, 0xC5C, 0x208F, 0xA7CE, 0xA7F1, 0xAB6C]
    for point in points:
        if not 0xD800 <= point < 0xE000:
            text = f"a{chr(point)}1{chr(point)}!{chr(point)}"
            assert padded(exported(text)[0], spec) == tokenizer([text])[0].tolist(), hex(point)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
@pytest.mark.parametrize("context_length", [3, 16])
def test_clips_tokenizer_is_carried_over_with_its_options(clean: str, context_length: int) -> None:
    tokenizer = SimpleTokenizer(additional_special_tokens=["<Mask>"], context_length=context_length, clean=clean)
    spec = tokenizer_spec(tokenizer)
    assert (spec.cleaning, spec.context_length) == (clean, context_length)
    for text in ("a <Mask> dog", "A <mask><MASK> DOG", "<Mask>", "x<Mask>y " * 9):
        assert padded(Tokenizer(spec)(text)[0], spec) == tokenizer([text])[0].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strip_sep_token": True},
        {"tokenizer_mode": "clips"},
        {"clean": "canonicalize"},
        {"truncation_side": "left"},
        {"pad_token": "[SEP]", "strip_sep_token": True},
    ],
)
@pytest.mark.parametrize("words", [0, 1, 13, 14, 15, 40])
def test_a_hugging_face_tokenizer_is_carried_over_with_its_options(
    tmp_path: Path, options: dict[str, Any], words: int
) -> None:
    tokenizer = hugging_face_in(tmp_path, **options)
    spec = tokenizer_spec(tokenizer)
    text = "cat " + "dog " * (words - 1) if words else ""
    ids, truncated = Tokenizer(spec)(text)
    assert padded(ids, spec) == tokenizer([text])[0].tolist()
    assert truncated is (words > (13 if "tokenizer_mode" in options else 14))


def test_the_wrapped_tokenizer_is_left_as_it_was(tmp_path: Path) -> None:
    tokenizer = hugging_face_in(tmp_path)
    tokenizer(["dog"])
    before = tokenizer.tokenizer.backend_tokenizer.to_str()
    spec = tokenizer_spec(tokenizer)
    assert tokenizer.tokenizer.backend_tokenizer.to_str() == before
    assert json.loads(spec.definition)["truncation"] is None
    assert json.loads(spec.definition)["padding"] is None


@pytest.mark.parametrize("text", ["", "Dog, dogs! s_d", "dog " * 30, "x"])
def test_a_siglip_tokenizer_is_carried_over(text: str) -> None:
    tokenizer = sig_lip()
    spec = tokenizer_spec(tokenizer)
    assert (spec.cleaning, spec.pad_id) == ("canonicalize", 1)
    assert padded(Tokenizer(spec)(text)[0], spec) == tokenizer([text])[0].tolist()


def test_a_specification_survives_json() -> None:
    from pydantic import TypeAdapter  # noqa: PLC0415 (of this test alone)

    adapter = TypeAdapter(TokenizerSpec)
    for _, spec, exported in (simple(), starter()):
        again = adapter.validate_json(adapter.dump_json(spec))
        assert again == spec
        assert Tokenizer(again)("a dog's life")[0].tolist() == exported("a dog's life")[0].tolist()


def test_a_tokenizer_that_drops_at_random_is_refused() -> None:
    with pytest.raises(TypeError, match="random"):
        tokenizer_spec(SimpleTokenizer(reduction_mask="random"))
    with pytest.raises(TypeError, match="no tokenizer of open_clip"):
        tokenizer_spec(str)


def test_a_tokenizer_that_pads_on_the_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="other ids for"):
        tokenizer_spec(hugging_face_in(tmp_path, padding_side="left"))


def test_a_tokenizer_without_a_padding_token_is_refused(tmp_path: Path) -> None:
    tokenizer = hugging_face_in(tmp_path)
    tokenizer.tokenizer.pad_token = None
    with pytest.raises(TypeError, match="no pad token"):
        tokenizer_spec(tokenizer)


def test_a_tokenizer_that_cleans_in_its_own_way_is_refused() -> None:
    tokenizer = SimpleTokenizer()
    tokenizer.clean_fn = str.upper
    with pytest.raises(TypeError, match="cleaned by"):
        tokenizer_spec(tokenizer)


def test_an_export_that_gives_other_ids_is_refused_and_the_text_is_named() -> None:
    class Another(SimpleTokenizer):  # type: ignore[misc]
        def encode(self, text: str) -> list[int]:
            return [7 if number == 1929 else number for number in super().encode(text)]  # a dog is something else

    another = Another()
    assert another.encoder["dog</w>"] == 1929
    with pytest.raises(TypeError, match="a dog"):
        tokenizer_spec(another)
