"""Pools of threads that are all there from the start."""

import threading
from concurrent.futures import ThreadPoolExecutor

from chassis.errors import invalid


def start_threads(count: int, name: str, setting: str) -> ThreadPoolExecutor:
    """Starts a pool's threads, where ``ThreadPoolExecutor`` would start each at a piece of work of its own.

    Where the system lets a process have no more of them, the start fails, and no call later: what was put into a pool
    whose thread could not be started is neither refused nor done.

    Args:
        count: of threads.
        name: how their names begin.
        setting: how many there are; to blame.

    Raises:
        LikenessError: one cannot be started.
    """
    pool, all_here = ThreadPoolExecutor(count, name), threading.Barrier(count)
    try:
        for _ in range(count):  # while each waits for the others, the next piece of work needs another one
            pool.submit(all_here.wait)
    except RuntimeError as error:
        all_here.abort()
        pool.shutdown(cancel_futures=True)
        raise invalid(
            setting,
            f"{count} threads called {name} cannot be started ({error}); set fewer, or raise what limits them: a "
            "container's number of processes, ulimit -u, or memory",
        ) from error
    return pool
