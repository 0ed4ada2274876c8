"""The gateway: what clients call. It embeds a query, looks up its nearest neighbours and answers; it holds no state."""

from chassis.cores import tell_libraries

# numpy's threads.
tell_libraries("OMP_NUM_THREADS")
