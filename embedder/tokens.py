"""Text → token ids, and whether the text was longer than the model reads."""

import threading
from typing import Any

import numpy as np
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer, basic_clean, canonicalize_text

from embedder.inputs import Tokens

# SimpleTokenizer remembers every word it ever saw; other people's texts would fill the memory.
_REMEMBERED_WORDS = 100_000


class Tokenizer:
    """An open_clip tokenizer that several threads may call, and that says what it cut."""

    def __init__(self, tokenizer: Any) -> None:
        """Wraps a tokenizer.

        Raises:
            TypeError: it is of a kind whose cutting cannot be observed.
        """
        if not isinstance(tokenizer, SimpleTokenizer | HFTokenizer | SigLipTokenizer):
            raise TypeError(f"{type(tokenizer).__name__} is no tokenizer of open_clip")
        if getattr(tokenizer, "reduction_fn", None):
            raise TypeError("a tokenizer that drops tokens at random gives no reproducible vectors")
        self._tokenizer: Any = tokenizer
        # Hugging Face's tokenizers keep padding and truncation as state: a second thread gets "Already borrowed".
        self._lock = threading.Lock()

    @property
    def context_length(self) -> int:
        """Tokens that the model reads of one text."""
        return int(self._tokenizer.context_length)

    def __call__(self, text: str) -> tuple[Tokens, bool]:
        """Tokenizes one text.

        Returns:
            The ids, int64 [context_length], and whether the text had more tokens than that.
        """
        with self._lock:
            ids: Tokens = self._tokenizer([text])[0].numpy().astype(np.int64, copy=False)
            truncated = self._exceeds(text, ids)
            if isinstance(self._tokenizer, SimpleTokenizer) and len(self._tokenizer.cache) > _REMEMBERED_WORDS:
                special = [self._tokenizer.decoder[number] for number in self._tokenizer.all_special_ids]
                self._tokenizer.cache = {token: token for token in special}
        return ids, truncated

    def _exceeds(self, text: str, ids: Tokens) -> bool:
        tokenizer = self._tokenizer
        if isinstance(tokenizer, SimpleTokenizer):
            if ids[-1] == 0:  # padding, as a text that fills the context ends with the end token
                return False
            return len(tokenizer.encode(text)) + 2 > self.context_length
        if isinstance(tokenizer, SigLipTokenizer):
            return self._whole(canonicalize_text(basic_clean(text))) > self.context_length
        if tokenizer.tokenizer_mode == "clips":  # begin, end and class tokens are added behind the cut
            return self._whole(tokenizer.clean_fn(text), special=False) > self.context_length - 3
        return self._whole(tokenizer.clean_fn(text)) > self.context_length

    def _whole(self, text: str, special: bool = True) -> int:
        encoded = self._tokenizer.tokenizer(
            text, add_special_tokens=special, truncation=False, padding=False, verbose=False
        )
        return len(encoded["input_ids"])
