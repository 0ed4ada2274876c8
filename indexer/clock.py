"""The clock by which leases are judged, whose holders are on several machines."""

import sys
import time

if sys.platform == "linux":

    def clock() -> float:
        """Seconds that only grow. They go on while the machine is suspended, in which others may take over.

        ``time.monotonic``, and so the event loop's own clock, stands still then.
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:

    def clock() -> float:
        """Seconds that only grow. Whether they go on while the machine is suspended is up to the system."""
        return time.monotonic()
