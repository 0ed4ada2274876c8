"""What the streams of one re-embedding did together: each that breaks is followed by another."""

from likeness.gateway.v1 import gateway_pb2


class Counts:
    """Counts each item once.

    A stream begins at the last page token that came, or, if there is none, at the beginning. What the streams before it
    did behind that place, it looks at once more, and what they embedded there it finds unchanged.

    Attributes:
        last: what was told last.
    """

    def __init__(self) -> None:
        """Nothing was told yet."""
        self.last = gateway_pb2.ReembedCollectionResponse()
        self._page = gateway_pb2.ReembedCollectionResponse()  # as it was told when the last page token came
        self._before = gateway_pb2.ReembedCollectionResponse()  # of earlier streams, before the present one's beginning
        self._again = 0  # what they embedded behind it
        self._broken = False
        self._most = (0, 0, 0)  # embedded, removed and done, as far as they ever were

    @property
    def done(self) -> int:
        """Items looked at."""
        return self._before.done + self.last.done

    @property
    def total(self) -> int:
        """Items of the source."""
        return max(self._before.total, self.last.total)

    @property
    def embedded(self) -> int:
        """Items embedded."""
        return self._before.embedded + self.last.embedded

    @property
    def unchanged(self) -> int:
        """Items that were there before the first stream."""
        return max(0, self._before.unchanged + self.last.unchanged - self._again)

    @property
    def removed(self) -> int:
        """Items deleted from the target."""
        return self._before.removed + self.last.removed

    def tell(self, told: gateway_pb2.ReembedCollectionResponse) -> bool:
        """A message has come.

        Returns:
            Whether something was done: a page ended, or more is embedded, removed or looked at than ever before.
        """
        if self._broken:
            self._begin_again()
        turned = told.next_page_token != self._page.next_page_token
        if turned:
            self._page = told
        self.last = told
        before, now = self._most, (self.embedded, self.removed, self.done)
        self._most = (max(before[0], now[0]), max(before[1], now[1]), max(before[2], now[2]))
        return turned or self._most != before

    def broke(self) -> None:
        """The stream broke; the next message is another one's."""
        self._broken = True

    def _begin_again(self) -> None:
        before, last, token = self._before, self.last, self.last.next_page_token
        before.total = max(before.total, last.total)
        before.embedded += last.embedded
        before.removed += last.removed
        if token:
            before.done += self._page.done
            before.unchanged += self._page.unchanged
            self._again += last.embedded - self._page.embedded
        else:
            before.done = before.unchanged = 0
            self._again = before.embedded
        self.last = self._page = gateway_pb2.ReembedCollectionResponse(next_page_token=token)
        self._broken = False
