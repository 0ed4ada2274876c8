"""Text → token ids, and whether the text was longer than the model reads; on ``tokenizers`` alone, without the model.

A text is cleaned as open_clip cleans it, then cut into tokens and to the model's length by one of three kinds, named by
``options["kind"]`` of the ``TokenizerSpec``; ``tokenizer_export`` makes those and checks them against open_clip:

- ``clip``: open_clip's ``SimpleTokenizer``. ``options``: ``pattern``, ``special`` (id by token), ``begin``, ``end``.
- ``fast``: its ``HFTokenizer`` and ``SigLipTokenizer``. ``options``: ``side`` that is cut, ``replace`` ([id, by id]).
- ``clips``: its ``HFTokenizer`` in the mode of that name. ``options``: ``begin``, ``end``, ``class``.
"""

import html
import string
from collections.abc import Callable
from itertools import islice

import ftfy
import numpy as np
import regex  # type: ignore[import-untyped]
import tokenizers

from embedder.inputs import Tokens
from embedder.spec import TokenizerSpec

Kind = Callable[[str], tuple[list[int], bool]]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokenizer:
    """Turns texts into token ids. Safe to call from many threads: nothing in it changes after it is made."""

    def __init__(self, spec: TokenizerSpec) -> None:
        """Builds the tokenizer that a specification describes.

        Raises:
            KeyError: the cleaning or the kind is none of those known here.
        """
        self._clean = CLEANING[spec.cleaning]
        self._encode = _KINDS[spec.options["kind"]](spec)
        self._context_length = spec.context_length

    @property
    def context_length(self) -> int:
        """Tokens that the model reads of one text."""
        return self._context_length

    def __call__(self, text: str) -> tuple[Tokens, bool]:
        """Tokenizes one text.

        Returns:
            The ids without padding, special ones included, int64 [at most context_length], and whether the text had
            more tokens than that. Of the kind ``clips``, whose class token stands behind the padding, always
            context_length ids.
        """
        ids, truncated = self._encode(self._clean(text))
        return np.array(ids, np.int64), truncated


def _canonicalize(text: str) -> str:
    return " ".join(_basic(text).replace("_", " ").translate(_PUNCTUATION).lower().split())


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _whitespace(text: str) -> str:
    return " ".join(_basic(text).split())


def _basic(text: str) -> str:
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


# open_clip's ``get_clean_fn``, by its names (open_clip/tokenizer.py).
CLEANING: dict[str, Callable[[str], str]] = {
    "canonicalize": _canonicalize,
    "lower": _lower,
    "whitespace": _whitespace,
}


def _clip(spec: TokenizerSpec) -> Kind:
    """CLIP's byte-level BPE: split by its pattern, cut to the context, the last id then replaced by the end token.

    The pattern is run by ``regex``, as open_clip runs it, and not by ``tokenizers``: their ideas of what is a letter
    differ for 17,481 code points (tokenizers 0.23, regex 2026.11; Unicode versions, and U+0345 under case folding).
    """
    rust = tokenizers.Tokenizer.from_str(spec.definition)
    pattern = regex.compile(spec.options["pattern"], regex.IGNORECASE)
    special: dict[str, int] = spec.options["special"]
    begin, end, most = spec.options["begin"], spec.options["end"], spec.context_length

    def merge(words: list[str]) -> list[int]:
        return rust.encode(words, is_pretokenized=True, add_special_tokens=False).ids if words else []

    def encode(text: str) -> tuple[list[int], bool]:
        # A word is at least one token: what comes behind context_length - 1 of them cannot change the result.
        words = [match.group() for match in islice(pattern.finditer(text), most - 1)]
        ids: list[int] = [begin]
        plain: list[str] = []
        for word in words:
            if word in special:
                ids += [*merge(plain), special[word]]
                plain = []
            else:
                plain.append(word)
        ids += [*merge(plain), end]
        if len(ids) <= most:
            return ids, False
        return [*ids[: most - 1], end], True

    return encode


def _fast(spec: TokenizerSpec) -> Kind:
    """A Hugging Face tokenizer, which cuts before it adds the special tokens."""
    rust = tokenizers.Tokenizer.from_str(spec.definition)
    rust.enable_truncation(spec.context_length, direction=spec.options["side"])
    replace: dict[int, int] = dict([spec.options["replace"]] if spec.options["replace"] else [])

    def encode(text: str) -> tuple[list[int], bool]:
        encoding = rust.encode(text)
        ids: list[int] = encoding.ids
        return [replace.get(number, number) for number in ids] if replace else ids, bool(encoding.overflowing)

    return encode


def _clips(spec: TokenizerSpec) -> Kind:
    """A Hugging Face tokenizer without its own special tokens: begin, text, end, padding, class token."""
    rust = tokenizers.Tokenizer.from_str(spec.definition)
    begin, end, last = spec.options["begin"], spec.options["end"], spec.options["class"]
    most = spec.context_length

    def encode(text: str) -> tuple[list[int], bool]:
        ids = rust.encode(text, add_special_tokens=False).ids
        kept = [begin, *ids[: most - 3], end]
        return [*kept, *[spec.pad_id] * (most - 1 - len(kept)), last], len(ids) > most - 3

    return encode


_KINDS: dict[str, Callable[[TokenizerSpec], Kind]] = {"clip": _clip, "fast": _fast, "clips": _clips}
