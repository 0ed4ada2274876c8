"""A numpy array that grows at its end, read by worker threads while the event loop appends."""

from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", bound=np.generic)

_LEAST_ROOM = 16


class Growing(Generic[Number]):
    """Values, or rows of ``width`` values, appended and never changed.

    One thread at a time appends; any may read.
    """

    def __init__(self, dtype: type[Number], width: int | None = None) -> None:
        self._room: npt.NDArray[Number] = np.empty((0,) if width is None else (0, width), dtype)
        self._values = self._room

    @property
    def values(self) -> npt.NDArray[Number]:
        """What has been appended: [n] or [n, width], read-only. What is appended later does not change it."""
        return self._values

    @property
    def nbytes(self) -> int:
        """Memory held, the room for what is still to come included."""
        return self._room.nbytes

    def __len__(self) -> int:
        return len(self._values)

    def extend(self, added: npt.ArrayLike) -> None:
        """Appends values: [k] or [k, width]. All or, when it fails, none."""
        array = np.asarray(added, self._room.dtype)
        self.make_room(len(array))
        stop = len(self._values) + len(array)
        self._room[len(self._values) : stop] = array
        values = self._room[:stop]
        values.flags.writeable = False
        self._values = values

    def make_room(self, count: int) -> None:
        """Takes the memory for ``count`` more values: they can be appended without failing."""
        needed = len(self._values) + count
        if needed > len(self._room):
            # Some to spare from the start: what was loaded at once need not be copied at the first write.
            size = max(needed + needed // 4, 2 * len(self._room), _LEAST_ROOM)
            room = np.empty((size, *self._room.shape[1:]), self._room.dtype)
            room[: len(self._values)] = self._values
            self._room = room
