"""Calls a running ``infinity-emb``: ``python -m benchmarks.embedder.infinity_load``.

Threads over http.client: the cheapest HTTP client at hand, so that the peer keeps the cores.
"""

import base64
import http.client
import json
import threading
import time

from benchmarks.desk import Answer, Desk, Request
from benchmarks.embedder.figures import percentiles, rate
from benchmarks.embedder.inputs import TEXTS, is_text, pictures, text, with_comment

SERVED_NAME = "clip"


class Client:
    """Measures with so many callers that each wait for their answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._files: dict[str, list[bytes]] = {}

    def measure(self, request: Request) -> Answer:
        """Calls for so many seconds; what is under way at the end is waited for and does not count."""
        kind, seconds = request["kind"], request["seconds"]
        if not is_text(kind) and kind not in self._files:
            self._files[kind] = pictures(kind)
        counts_from = time.perf_counter() + request["ramp_s"]
        done: list[float] = []
        took: list[float] = []
        failed: list[str] = []

        def caller() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", request["port"], timeout=120)
            try:
                while (begun := time.perf_counter()) < counts_from + seconds:
                    self._call(connection, kind)
                    if counts_from <= (now := time.perf_counter()) < counts_from + seconds:
                        done.append(now - counts_from)
                        took.append(now - begun)
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                failed.append(f"{type(error).__name__}: {error}")
            finally:
                connection.close()

        callers = [threading.Thread(target=caller) for _ in range(request["concurrency"])]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        if failed:
            raise RuntimeError(failed[0])
        return {"per_s": rate(done, seconds), "items": len(done), **percentiles(took)}

    def _call(self, connection: http.client.HTTPConnection, kind: str) -> None:
        with self._lock:
            self._number += 1
            number = self._number
        if is_text(kind):
            wanted, modality = text(TEXTS[kind], number), "text"
        else:
            files = self._files[kind]
            encoded = base64.b64encode(with_comment(files[number % len(files)], number)).decode()
            wanted, modality = f"data:image/jpeg;base64,{encoded}", "image"
        body = {"model": SERVED_NAME, "input": [wanted], "modality": modality, "encoding_format": "base64"}
        connection.request("POST", "/embeddings", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"HTTP {answer.status}: {content[:300]!r}")


def main() -> None:
    """Answers requests."""
    Desk().serve({}, Client().measure)


if __name__ == "__main__":
    main()
