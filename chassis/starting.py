"""What SIGTERM does until a service follows it by itself (``chassis.stopping``): it ends the process, with 0.

To the first process of a container (PID 1) the kernel gives no signal whose handling is left to it, so one that comes
while libraries are imported, which takes seconds, would be lost, and the process killed when its grace is over. Nothing
has been begun by then that would have to be ended.
"""

import os
import signal
from types import FrameType


def end_when_told() -> None:
    """From here on SIGTERM ends this process at once. To be called first of all, in the main thread.

    Programs that this one starts do not inherit it.
    """
    signal.signal(signal.SIGTERM, _end)


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)  # an exception could be lost in the middle of an import
