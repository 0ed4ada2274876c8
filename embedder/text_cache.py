"""The vectors of texts that were asked for lately: searches repeat themselves."""

from collections import OrderedDict
from dataclasses import replace

from chassis.errors import LikenessError
from embedder.inputs import Outcome


class TextCache:
    """Remembers so many texts; the one not asked for longest is forgotten first."""

    def __init__(self, size: int) -> None:
        """Starts empty.

        Args:
            size: most texts; 0 for none.
        """
        self._size = size
        self._outcomes: OrderedDict[str, Outcome] = OrderedDict()

    def get(self, text: str) -> Outcome | None:
        """What became of this text before, if it is remembered."""
        outcome = self._outcomes.get(text)
        if outcome is not None:
            self._outcomes.move_to_end(text)
        return outcome

    def put(self, text: str, outcome: Outcome) -> None:
        """Remembers a text's vector, if it has one."""
        if self._size == 0 or isinstance(outcome.result, LikenessError):
            return
        # A copy: the vector is a row of its batch, and would keep the whole batch in memory.
        self._outcomes[text] = replace(outcome, result=outcome.result.copy())
        self._outcomes.move_to_end(text)
        if len(self._outcomes) > self._size:
            self._outcomes.popitem(last=False)
