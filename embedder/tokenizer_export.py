"""An open_clip tokenizer as the ``tokenizers`` library runs it, so that the serving process needs neither it nor torch.

What cannot be expressed to the very id is refused. Each export is tried, before it is handed out, on the texts of
``_AWKWARD`` and of the fingerprint.
"""

import json
from typing import Any

import open_clip.tokenizer
import tokenizers
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer
from tokenizers import models, pre_tokenizers

from embedder.fingerprint import _PROBES
from embedder.spec import TokenizerSpec
from embedder.tokens import Tokenizer

_CLEANING = {
    open_clip.tokenizer._clean_canonicalize: "canonicalize",
    open_clip.tokenizer._clean_lower: "lower",
    open_clip.tokenizer._clean_whitespace: "whitespace",
}
_WORD_END = "</w>"
_AWKWARD = (
    " ",
    "\n\t\r\n",
    "\u200b\ufeff",
    "\x00\x01\x1b[31mred\x1b[0m\x7f",
    "a\u00a0no-break\u2003em\u2028line\u3000space",
    "a\x1cb\x1db\x1eb\x1fb\x85b",
    "!",
    "!!!???...,,,;;;",
    "a ! " * 60,
    ". " * 200,
    "x" * 2048,
    "ab" * 1024,
    "z" * 70 + " " + "q" * 300,
    "é" * 500,
    "🐕" * 200,
    "日" * 300,
    "word" * 512,
    "a dog " * 300,
    "0123456789" * 30,
    "<start_of_text> a dog <end_of_text>",
    "<START_OF_TEXT>x<End_Of_Text>",
    "!<end_of_text>!",
    "<|endoftext|> <s> </s> <pad> <unk> [CLS] [MASK] [PAD] [UNK] <bos> <eos> ▁x",
    "don't DON'T we'LL i'd they'RE it'ſ ’tis ‘quoted’",
    "&amp;amp;lt;p&amp;amp;gt; &#128021; &nbsp; &eacute; &bogus; &#0;",
    "mojibake: cafÃ© â€œquoteâ€\x9d",
    "e\u0301 o\u0308 A\u030a n\u0303 \u0345 \u1e9e İstanbul ß ŒUVRE",
    "ｆｕｌｌ ｗｉｄｔｈ １２３ ①②③ Ⅷ ½ ²",
    "👩‍👩‍👧‍👦👍🏽🇨🇭🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "ไทย ភាសាខ្មែរ ქართული አማርኛ தமிழ் 한국어 עברית فارسی\u200cها",
    "𝒻𝒶𝓃𝒸𝓎 𝕥𝕖𝕩𝕥 𐍈 𓀀 \U000e0041 \U0010ffff \ue000 \ufffd",
    "\u202eright to left\u202c \u2066isolate\u2069",
    "snake_case__and___more -- – — ― … · • ° © ® ™",
    "C++ C# f(x)=x^2 {a:[1,2]} $5 €5 50% @user #tag https://example.com/?q=1&b=2",
    "line one\nline two\r\nline three",
    "'s 't 're 've 'm 'll 'd ''s '",
    "_", "-", "'", '"', "\\", "/", "a", "A", "1", "é", "日", "🐕",
)  # fmt: skip


def tokenizer_spec(tokenizer: Any) -> TokenizerSpec:
    """Describes a tokenizer for ``embedder.tokens.Tokenizer``.

    Args:
        tokenizer: what open_clip gives for a model; it is left as it is.

    Raises:
        TypeError: it is of an unknown kind, gives no reproducible ids, or its ids would differ, which are then named.
    """
    if getattr(tokenizer, "reduction_fn", None):
        raise TypeError("a tokenizer that drops tokens at random gives no reproducible vectors")
    if isinstance(tokenizer, SimpleTokenizer):
        spec = _of_simple(tokenizer)
    elif isinstance(tokenizer, HFTokenizer | SigLipTokenizer):
        spec = _of_hugging_face(tokenizer)
    else:
        raise TypeError(f"{type(tokenizer).__name__} is no tokenizer of open_clip")
    _check(spec, tokenizer)
    return spec


def _of_simple(tokenizer: SimpleTokenizer) -> TokenizerSpec:
    special = {tokenizer.decoder[number]: number for number in tokenizer.all_special_ids}
    odd = [token for token in special if not (token.isascii() and token.isprintable())]
    if odd:  # open_clip looks them up among byte-encoded words, where only printable ASCII stands for itself
        raise TypeError(f"the special tokens {odd} are not printable ASCII")
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    rust = tokenizers.Tokenizer(models.BPE(vocab=tokenizer.encoder, merges=merges, end_of_word_suffix=_WORD_END))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    options = {
        "kind": "clip",
        "pattern": tokenizer.pat.pattern,
        "special": special,
        "begin": tokenizer.sot_token_id,
        "end": tokenizer.eot_token_id,
    }
    return TokenizerSpec(rust.to_str(), _context_length(tokenizer), _cleaning(tokenizer.clean_fn), 0, options)


def _of_hugging_face(tokenizer: Any) -> TokenizerSpec:
    inner = tokenizer.tokenizer
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None:
        raise TypeError(f"{type(inner).__name__} does not run on the tokenizers library")
    rust = tokenizers.Tokenizer.from_str(backend.to_str())
    rust.no_truncation()
    rust.no_padding()
    pad, options = inner.pad_token_id, dict[str, Any]()
    if getattr(tokenizer, "tokenizer_mode", "") == "clips":
        options = {"kind": "clips", "begin": inner.bos_token_id, "end": inner.eos_token_id, "class": inner.cls_token_id}
    else:
        stripped = [inner.sep_token_id, 0] if getattr(tokenizer, "strip_sep_token", False) else None
        options = {"kind": "fast", "side": inner.truncation_side, "replace": stripped}
        pad = 0 if stripped and pad == stripped[0] else pad
    missing = [name for name, value in {"pad": pad, **options}.items() if value is None and name != "replace"]
    if missing:
        raise TypeError(f"{type(inner).__name__} has no {' and no '.join(missing)} token")
    cleaning = "canonicalize" if isinstance(tokenizer, SigLipTokenizer) else _cleaning(tokenizer.clean_fn)
    return TokenizerSpec(rust.to_str(), _context_length(tokenizer), cleaning, int(pad), options)


def _context_length(tokenizer: Any) -> int:
    if not tokenizer.context_length:
        raise TypeError(f"this {type(tokenizer).__name__} does not say how many tokens its model reads")
    return int(tokenizer.context_length)


def _cleaning(function: Any) -> str:
    if function not in _CLEANING:
        raise TypeError(f"texts are cleaned by {function!r}, which is none of open_clip's functions")
    return _CLEANING[function]


def _check(spec: TokenizerSpec, tokenizer: Any) -> None:
    exported = Tokenizer(spec)
    for text in (*_PROBES, *_AWKWARD):
        try:
            expected = tokenizer([text])[0].tolist()
        except Exception as error:  # whatever a tokenizer that lacks a part raises
            raise TypeError(f"the tokenizer fails on {_shown(text)}: {error}") from error
        ids = exported(text)[0].tolist()
        row = ids + [spec.pad_id] * (len(expected) - len(ids))
        if row != expected:
            at = next((n for n, pair in enumerate(zip(row, expected, strict=False)) if pair[0] != pair[1]), None)
            raise TypeError(
                f"the tokenizers library gives other ids for {_shown(text)}: from position {at}, "
                f"{row[at:][:5]} instead of {expected[at:][:5]}"
            )


def _shown(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else text[:40] + "…", ensure_ascii=True)
