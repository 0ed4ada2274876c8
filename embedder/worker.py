"""``python -m embedder.worker DESCRIPTOR DESCRIPTOR``: the model process. Started by the embedder, by nobody else.

1. read the settings
2. load the model and say what it is, or why it cannot be
3. map the pixels that are shared with the serving process
4. read a batch, run it, answer; until the serving process closes the line
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import structlog

from chassis import logs
from chassis.errors import LikenessError, incident, to_status
from chassis.tether import die_with
from embedder.allocator import keep_freed_memory, share_one_arena
from embedder.inputs import Array, Pixels
from embedder.settings import EmbedderSettings
from embedder.slab import SlabShape, mapped
from embedder.wire import Head, pack, receive

if TYPE_CHECKING:
    from embedder.engine import Engine

log = structlog.get_logger()

Load = Callable[[EmbedderSettings], "Engine"]


def serve(load: Load, connection: socket.socket, shared: int) -> None:
    """Runs a model for the process at the other end, until that ends.

    Args:
        load: gives the model.
        connection: to the serving process.
        shared: descriptor of the file that holds the pixels.
    """
    _stay_with_parent()
    settings = EmbedderSettings.model_validate_json(bytes(receive(connection)[1]))
    logs.configure(settings.log_level, settings.log_style, "EmbedderModel")
    share_one_arena()
    try:
        engine = load(settings)
    except Exception as error:  # one that nobody foresaw is logged, and told as what it is: the process did not die
        failure = error if isinstance(error, LikenessError) else incident("the model cannot be loaded", error)
        connection.sendall(pack({"failed": True}, to_status(failure).SerializeToString()))
        return
    keep_freed_memory()
    connection.sendall(pack({"pid": os.getpid()}, engine.spec.to_json().encode()))
    rows = mapped(shared, SlabShape(**receive(connection)[0]["slab"]))
    while True:
        head, body = receive(connection)
        connection.sendall(_answer(engine, rows, head, body))


def _answer(engine: "Engine", rows: Pixels, head: Head, body: bytearray) -> bytes:
    # Imported with the engine: what counts as out of memory depends on the libraries in use.
    from embedder.backends import is_out_of_memory  # noqa: PLC0415

    try:
        vectors = _encode(engine, rows, head, body)
    except Exception as error:
        out_of_memory = is_out_of_memory(error)
        log.warning("a forward pass failed", out_of_memory=out_of_memory, exc_info=error)
        return pack({"seq": head["seq"], "error": f"{type(error).__name__}: {error}"[:1000], "memory": out_of_memory})
    return pack({"seq": head["seq"], "shape": vectors.shape}, vectors.tobytes())


def _encode(engine: "Engine", rows: Pixels, head: Head, body: bytearray) -> Array:
    if head["kind"] == "text":
        return engine.backend.encode_texts(np.frombuffer(body, np.int64).reshape(head["shape"]))
    return engine.backend.encode_images(rows[head["slots"]])


def _stay_with_parent() -> None:
    """Ends with the serving process, and only with it: Ctrl-C reaches both, but that one still has calls to answer."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    die_with(os.getppid())


def main(load: Load) -> None:
    """The command line; exits with 0 when the serving process has closed the line."""
    connection, shared = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    try:
        serve(load, connection, shared)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _load(settings: EmbedderSettings) -> "Engine":
    from embedder.engine import load_engine  # noqa: PLC0415 (its libraries take seconds to import)

    return load_engine(settings)


if __name__ == "__main__":
    main(_load)
