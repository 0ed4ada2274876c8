"""Messages as HTTP carries them: JSON or binary, gzipped or not; large ones are read and written off the event loop.

What a caller sent is checked before it becomes Python objects: how large it is unpacked, how many values its JSON
has, how deep they are nested. Whatever else is wrong with it is the caller's fault too, so that nothing here ends as
INTERNAL.
"""

import asyncio
import json
import re
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToJson, ParseDict
from google.protobuf.message import Message
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, invalid
from gateway.http.bodies import too_large

M = TypeVar("M", bound=Message)
R = TypeVar("R")

# Larger messages are read and written in a thread. A value of JSON takes some 20 µs, whatever its size.
INLINE_BYTES, INLINE_VALUES = 8 * 1024, 300
# An empty object takes 64 bytes of memory for the 3 that it takes in JSON, and its time. The largest requests of the
# contract have fewer: pictures and vectors are one value each.
MAX_JSON_VALUES = 100_000
# Threads for all of them: they take turns with the event loop.
THREADS = 2
# Deflate makes at most this much of a byte.
GZIP_RATIO = 1032

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")


@dataclass(frozen=True)
class Received:
    """A request as it came.

    Attributes:
        body: the message.
        gzipped: whether it is compressed.
        as_json: whether it is JSON; binary otherwise.
    """

    body: bytes
    gzipped: bool
    as_json: bool


class Gzip:
    """Marks a body as compressed, for ``read`` to unpack off the event loop; answers are never compressed."""

    class Body(bytes):
        """A compressed body."""

    def name(self) -> str:
        """As Content-Encoding names it."""
        return "gzip"

    def compress(self, data: bytes | bytearray | memoryview) -> bytes:
        """Of no use: the caller's Accept-Encoding is not passed on."""
        raise NotImplementedError

    def decompress(
        self,
        data: bytes | bytearray | memoryview,
        read_max_bytes: int | None = None,  # noqa: ARG002  (the same limit is ``read``'s)
    ) -> bytes:
        """Keeps it as it is."""
        return self.Body(data)


class Codec:
    """Leaves reading and writing to ``read`` and ``written``, which can wait for a thread."""

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        """As Content-Type has it: ``json`` or ``proto``."""
        return self._name

    def encode(self, message: bytes) -> bytes:
        """It is encoded already."""
        return message

    def decode(self, data: bytes | bytearray, message_class: type[Any]) -> Any:  # noqa: ARG002  (``read`` is told)
        """Keeps it as it is."""
        return Received(bytes(data), isinstance(data, Gzip.Body), self._name == "json")


class Messages:
    """Reads and writes messages."""

    def __init__(self, max_bytes: int) -> None:
        """Takes the most bytes that a message may have, unpacked."""
        self._max_bytes = max_bytes
        self._threads = ThreadPoolExecutor(THREADS, "http-message")
        self._free = asyncio.Semaphore(THREADS)

    async def read(self, received: Received, kind: type[M], hold: Callable[[int], None]) -> M:
        """The message that was received.

        Args:
            received: as it came.
            kind: the message's type.
            hold: called with the bytes that unpacking it may take, before it is unpacked; raises where that is too
                much. Then with those that it did not take, less than 0.

        Raises:
            LikenessError: FIELD_INVALID or BATCH_TOO_LARGE.
        """
        size = len(received.body)
        if received.gzipped:
            size = min(size * GZIP_RATIO, self._max_bytes)
        small = size <= INLINE_BYTES and (not received.as_json or _values(received.body) <= INLINE_VALUES)
        # What unpacking may take is held for as long as that takes: a picture, which shrinks by nothing, would take a
        # thousand times its room.
        begin = partial(hold, size) if received.gzipped else None
        message, unpacked = await self._do(small, lambda: _read(received, kind, self._max_bytes), begin)
        if received.gzipped:
            hold(unpacked - size)
        return message

    async def written(self, message: Message, as_json: bool) -> bytes:
        """The message as it is sent."""
        small = message.ByteSize() <= INLINE_BYTES
        return await self._do(small, lambda: _as_json(message) if as_json else message.SerializeToString())

    def close(self) -> None:
        """Ends the threads once what they have begun is done."""
        self._threads.shutdown(wait=False)

    async def _do(self, small: bool, work: Callable[[], R], begin: Callable[[], None] | None = None) -> R:
        if small:
            if begin is not None:
                begin()
            return work()
        # A place is free when the work has ended, also when nobody waits for it any more: what is left of calls that
        # were given up cannot pile up.
        await self._free.acquire()
        if begin is not None:
            try:
                begin()
            except LikenessError:
                self._free.release()
                raise
        loop = asyncio.get_running_loop()
        done = self._threads.submit(work)
        done.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
        return await asyncio.wrap_future(done)


def _as_json(message: Message) -> bytes:
    return MessageToJson(message, indent=None, ensure_ascii=False).encode()


def _read(received: Received, kind: type[M], max_bytes: int) -> tuple[M, int]:
    """The message, and the size of its body, unpacked."""
    body = _unzipped(received.body, max_bytes) if received.gzipped else received.body
    if len(body) > max_bytes:
        raise too_large(max_bytes)
    try:
        if not received.as_json:
            return kind.FromString(body), len(body)
        values = _parsed(body)
        _check_fields(values, kind.DESCRIPTOR, "")
        message = kind()
        ParseDict(values, message)
    except LikenessError:
        raise
    except RecursionError:
        raise invalid("request", "is nested too deeply") from None
    except Exception as error:  # whatever the parsers raise, it is about what the caller sent
        why = " ".join(str(error).split())
        raise invalid("request", f"cannot be read as {kind.DESCRIPTOR.full_name}: {why}") from None
    return message, len(body)


def _unzipped(body: bytes, max_bytes: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        whole = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise invalid("request", f"is not gzip, as Content-Encoding says: {error}") from None
    if len(whole) > max_bytes:
        raise too_large(max_bytes)
    if not unpacker.eof or unpacker.unused_data:
        raise invalid("request", "is cut, or more than one gzip member")
    return whole


def _values(body: bytes) -> int:
    """At least as many as JSON has, brackets and commas inside of texts being counted too."""
    return sum(body.count(mark) for mark in (b",", b"[", b"{"))


def _parsed(body: bytes) -> Any:
    if _values(body) > MAX_JSON_VALUES:
        message = f"the request has more than {MAX_JSON_VALUES:,} JSON values: send several calls, or binary protobuf"
        raise LikenessError(error_pb2.REASON_BATCH_TOO_LARGE, message)
    if not body:
        raise invalid("request", "is empty; expected a JSON object, {} at least")
    values = json.loads(body.decode(), object_pairs_hook=_once_each)
    if not isinstance(values, dict):
        raise invalid("request", f"is a JSON {type(values).__name__}; expected an object")
    return values


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise invalid("request", "has an object with one key twice")
    return values


def _check_fields(values: Any, descriptor: Any, path: str) -> None:
    """Refuses what the parser would take.

    Of a field that is there by both its names it would take the last. Of what is no base64 it would leave out what it
    does not know, and take the rest for a picture.
    """
    if not isinstance(values, Mapping):
        return  # the parser says what is wrong
    by_name, seen = descriptor.fields_by_camelcase_name, set[int]()
    for key, value in values.items():
        field = by_name.get(key) or descriptor.fields_by_name.get(key)
        if field is None:
            continue
        name = f"{path}{key}"
        if field.number in seen:
            raise invalid(name, f"is there twice, as {field.camelcase_name} and as {field.name}; expected one of them")
        seen.add(field.number)
        if field.message_type is None and field.type != FieldDescriptor.TYPE_BYTES:
            continue
        if field.message_type is None or not field.message_type.GetOptions().map_entry:
            for i, each in enumerate(value) if isinstance(value, list) else [(None, value)]:
                _check_one(each, field, name if i is None else f"{name}[{i}]")
        elif isinstance(value, Mapping):
            for k, each in value.items():
                _check_one(each, field.message_type.fields_by_name["value"], f"{name}[{json.dumps(k[:100])}]")


def _check_one(value: Any, field: FieldDescriptor, name: str) -> None:
    if field.message_type is not None:
        _check_fields(value, field.message_type, f"{name}.")
    elif isinstance(value, str) and not _BASE64.fullmatch(value):
        raise invalid(name, "is not base64; expected the bytes alone, without a prefix such as data:image/png;base64,")
