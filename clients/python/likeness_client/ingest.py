"""Takes pictures in over one ingest stream at a time, with flat memory, and again over the next when one breaks.

1. take a picture from the caller's iterable, read its file, and hand it to the stream, while few enough are unanswered
2. otherwise wait for an answer, and yield it
3. when the stream breaks for a reason that may pass, wait, open another with the last resume token, so that it goes to
   the same collection, and send first what has no answer

While the gateway asks for a pause nothing is sent, nor read from the caller's iterable.
"""

import queue
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import sleep

import grpc
from likeness.gateway.v1 import gateway_pb2
from likeness.gateway.v1.gateway_pb2_grpc import SearchServiceStub

from likeness_client import wire
from likeness_client.backoff import may_go_on
from likeness_client.errors import (
    FIELD_INVALID,
    FILE_UNREADABLE,
    IMAGE_TOO_LARGE,
    IndexInterruptedError,
    LikenessError,
)
from likeness_client.items import IndexOutcome, Picture
from likeness_client.rpc_errors import from_item_error

OnReconnect = Callable[[LikenessError, int, float], None]
OnBackoff = Callable[[float], None]

_LOOK_S = 1.0


@dataclass(frozen=True)
class IngestLimits:
    """What bounds an ingest stream.

    Attributes:
        max_unanswered: most pictures sent and not yet answered.
        max_unanswered_bytes: the bytes of them at which no further picture is sent.
        max_encoded_bytes: most bytes of one picture.
        max_message_bytes: most bytes of one message, that is of a picture with all that is said of it.
        reconnects: how often in a row a stream is opened again without one answer between.
        first_backoff_s: seconds before the first of them; doubled from one to the next, up to ``max_backoff_s``.
        max_backoff_s: longest wait between two of them, unless the server asks for a longer one.
    """

    max_unanswered: int = 256
    max_unanswered_bytes: int = 64 * 2**20
    max_encoded_bytes: int = 64 * 2**20
    max_message_bytes: int = 64 * 2**20
    reconnects: int = 5
    first_backoff_s: float = 0.5
    max_backoff_s: float = 8.0


class Ingest:
    """One ingest, over as many streams as it takes."""

    def __init__(
        self,
        stub: SearchServiceStub,
        *,
        start: gateway_pb2.IndexStart,
        pictures: Iterator[Picture],
        limits: IngestLimits,
        explain: Callable[[grpc.RpcError], LikenessError],
        on_reconnect: OnReconnect | None,
        on_backoff: OnBackoff | None = None,
    ) -> None:
        self._stub = stub
        self._start = start
        self._pictures = pictures
        self._limits = limits
        self._explain = explain
        self._on_reconnect = on_reconnect
        self._on_backoff = on_backoff
        self._again: deque[Picture] = deque()  # taken from the iterable, unanswered by a stream that broke
        self._sequence = 0
        self._broken_in_a_row = 0

    def run(self) -> Iterator[IndexOutcome]:
        """Yields one outcome for every picture, in any order.

        Raises:
            IndexInterruptedError: a stream broke for good; it names the pictures without an outcome.
        """
        while True:
            try:
                yield from self._one_stream()
            except _StreamBrokeError as broken:
                self._again.extendleft(reversed(broken.unanswered))
                error = broken.error
            else:
                return
            if not may_go_on(error) or self._broken_in_a_row == self._limits.reconnects:
                raise IndexInterruptedError(
                    error.code,
                    error.reason,
                    error.message,
                    error.violations,
                    error.retry_after_s,
                    error.trace_id,
                    unanswered=tuple(self._again),
                ) from error
            backoff_s = min(self._limits.first_backoff_s * 2**self._broken_in_a_row, self._limits.max_backoff_s)
            wait_s = max(backoff_s, error.retry_after_s or 0.0)
            self._broken_in_a_row += 1
            if self._on_reconnect:
                self._on_reconnect(error, len(self._again), wait_s)
            sleep(wait_s)

    def _one_stream(self) -> Iterator[IndexOutcome]:
        requests: queue.SimpleQueue[gateway_pb2.IndexImagesRequest | None] = queue.SimpleQueue()
        answers: queue.SimpleQueue[gateway_pb2.IndexImagesResponse | _Ended] = queue.SimpleQueue()
        pause = _Pause()
        requests.put(gateway_pb2.IndexImagesRequest(start=self._start))
        call = self._stub.IndexImages(_paced(requests, pause))
        threading.Thread(target=self._receive, args=(call, answers), daemon=True).start()
        unanswered: dict[int, tuple[Picture, int]] = {}
        unanswered_bytes = 0
        more, ended = True, False
        try:
            while not ended:
                if more and not pause.left() and self._has_room(len(unanswered), unanswered_bytes):
                    picture = self._take()
                    if picture is None:
                        more = False
                        requests.put(None)
                    else:
                        request = self._read(picture)
                        if isinstance(request, IndexOutcome):
                            yield request
                        else:
                            size = len(request.item.image.encoded)
                            unanswered[request.item.sequence] = (picture, size)
                            unanswered_bytes += size
                            requests.put(request)
                        del request
                held = pause.left()
                wait = not more or held > 0 or not self._has_room(len(unanswered), unanswered_bytes)
                for answer in _waiting(answers, wait, min(_LOOK_S, held or _LOOK_S)):
                    if isinstance(answer, _Ended):
                        ended = True
                        if answer.error is not None or unanswered or more:
                            error = answer.error or _ended_early()
                            raise _StreamBrokeError(error, [picture for picture, _ in unanswered.values()])
                    elif not answer.HasField("result"):
                        self._heed(answer, pause)
                    elif answer.result.sequence in unanswered:
                        picture, size = unanswered.pop(answer.result.sequence)
                        unanswered_bytes -= size
                        self._broken_in_a_row = 0
                        yield _outcome(picture, size, answer.result)
        finally:
            pause.end()
            requests.put(None)
            call.cancel()

    def _heed(self, answer: gateway_pb2.IndexImagesResponse, pause: "_Pause") -> None:
        match answer.WhichOneof("message"):
            case "checkpoint":
                self._start.resume_token = answer.checkpoint.resume_token
            case "backoff":
                seconds = answer.backoff.delay.ToMilliseconds() / 1000
                pause.begin(seconds)
                if self._on_backoff:
                    self._on_backoff(seconds)

    def _receive(
        self,
        call: Iterator[gateway_pb2.IndexImagesResponse],
        answers: "queue.SimpleQueue[gateway_pb2.IndexImagesResponse | _Ended]",
    ) -> None:
        error: LikenessError | None = None
        try:
            for response in call:
                answers.put(response)
        except grpc.RpcError as broken:
            error = self._explain(broken)
        finally:
            answers.put(_Ended(error))

    def _has_room(self, unanswered: int, unanswered_bytes: int) -> bool:
        return unanswered < self._limits.max_unanswered and unanswered_bytes < self._limits.max_unanswered_bytes

    def _take(self) -> Picture | None:
        return self._again.popleft() if self._again else next(self._pictures, None)

    def _read(self, picture: Picture) -> gateway_pb2.IndexImagesRequest | IndexOutcome:
        """The request for a picture, or why there can be none."""
        size = 0
        try:
            encoded = picture.image if isinstance(picture.image, bytes) else self._read_file(Path(picture.image))
            size = len(encoded)
            self._sequence += 1
            item = wire.picture_to_proto(picture, encoded, self._sequence)
            request = gateway_pb2.IndexImagesRequest(item=item)
            _check_size(size, self._limits.max_encoded_bytes)
            _check_size(request.ByteSize(), self._limits.max_message_bytes)
        except LikenessError as error:
            return IndexOutcome(picture, "", error, size)
        except OSError as error:
            description = f"cannot be read ({error.strerror or error})"
            return IndexOutcome(picture, "", LikenessError("INVALID_ARGUMENT", FILE_UNREADABLE, description), size)
        except (ValueError, TypeError) as error:
            return IndexOutcome(picture, "", LikenessError("INVALID_ARGUMENT", FIELD_INVALID, str(error)), size)
        return request

    def _read_file(self, path: Path) -> bytes:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise OSError("no regular file")
        _check_size(about.st_size, self._limits.max_encoded_bytes)
        return path.read_bytes()


class _Pause:
    """Until when the gateway wants nothing. Shared by the thread that reads answers and gRPC's, which sends."""

    def __init__(self) -> None:
        self._until = 0.0
        self._ended = threading.Event()

    def begin(self, seconds: float) -> None:
        """From now on nothing for so long."""
        self._until = max(self._until, time.monotonic() + seconds)

    def left(self) -> float:
        """How many seconds of it are left."""
        return max(0.0, self._until - time.monotonic())

    def wait(self) -> None:
        """Returns when it is over, or the stream is."""
        while (left := self.left()) > 0 and not self._ended.wait(left):
            pass

    def end(self) -> None:
        """The stream is over."""
        self._ended.set()


def _paced(
    requests: "queue.SimpleQueue[gateway_pb2.IndexImagesRequest | None]", pause: _Pause
) -> Iterator[gateway_pb2.IndexImagesRequest]:
    """The requests as they are put, none while the pause lasts."""
    while (request := requests.get()) is not None:
        pause.wait()
        yield request


@dataclass(frozen=True)
class _Ended:
    error: LikenessError | None


@dataclass
class _StreamBrokeError(Exception):
    error: LikenessError
    unanswered: list[Picture]


def _waiting(
    answers: "queue.SimpleQueue[gateway_pb2.IndexImagesResponse | _Ended]", wait: bool, longest_s: float
) -> Iterator[gateway_pb2.IndexImagesResponse | _Ended]:
    """The answers that have come; if ``wait`` and there are none, those that come soon."""
    try:
        # Not for ever: an interrupt that comes just before the thread sleeps does not wake it.
        yield answers.get(block=wait, timeout=longest_s)
        while True:
            yield answers.get_nowait()
    except queue.Empty:
        return


def _outcome(picture: Picture, size: int, result: gateway_pb2.IndexResult) -> IndexOutcome:
    match result.WhichOneof("outcome"):
        case "stored":
            return IndexOutcome(picture, result.id, None, size)
        case "skipped":
            return IndexOutcome(picture, result.id, None, size, wire.skipped_from_proto(result.skipped))
        case "error":
            return IndexOutcome(picture, result.id, from_item_error(result.error), size)
        case _:
            error = LikenessError("UNKNOWN", "", "the gateway's answer says neither that it is stored nor why not")
            return IndexOutcome(picture, result.id, error, size)


def _ended_early() -> LikenessError:
    return LikenessError("UNAVAILABLE", "", "the gateway ended the stream before it had answered every picture")


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        description = f"{size:,} bytes; at most {limit:,} are taken: scale the picture down"
        raise LikenessError("INVALID_ARGUMENT", IMAGE_TOO_LARGE, description)
