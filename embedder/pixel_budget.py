"""Bounds how many pixels are decoded at a time, whatever the number of threads and pictures."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """Pixels to be lent to threads, first come, first served."""

    def __init__(self, pixels: int) -> None:
        """Starts with everything at home.

        Args:
            pixels: most that are lent at a time; whoever asks for more gets all.
        """
        self._all = pixels
        self._left = pixels
        self._returned = threading.Condition()
        # Held while waiting, so that many small pictures cannot keep passing a large one.
        self._turn = threading.Lock()

    @property
    def waiting(self) -> bool:
        """Whether a thread waits for pixels."""
        return self._turn.locked()

    @contextmanager
    def lent(self, pixels: int) -> Iterator[None]:
        """Waits until that many are free, and gives them back afterwards."""
        pixels = min(pixels, self._all)
        with self._turn, self._returned:
            self._returned.wait_for(lambda: self._left >= pixels)
            self._left -= pixels
        try:
            yield
        finally:
            with self._returned:
                self._left += pixels
                self._returned.notify()
