"""A Chroma whose answers to whoever reads items can be held back."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

_LONGEST_S = 60.0
_HOP = {"connection", "content-length", "content-encoding", "transfer-encoding", "host", "accept-encoding"}


class Held:
    """Stands between an indexer and Chroma, passes everything on, and holds back answers with whole items.

    Attributes:
        url: where it listens.
    """

    def __init__(self, chroma_url: str) -> None:
        self._permits = threading.Semaphore(0)
        self._http = httpx.Client(base_url=chroma_url, trust_env=False, timeout=_LONGEST_S)
        held = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                held._pass_on(self)

            do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 (the names that http.server looks for)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def let_pass(self, answers: int) -> None:
        """So many answers more are given, those that wait now first."""
        self._permits.release(answers)

    def serve(self) -> None:
        """Runs until ``end``."""
        self._server.serve_forever()

    def end(self) -> None:
        """Gives everything free and ends."""
        self.let_pass(1000)
        self._server.shutdown()
        self._server.server_close()
        self._http.close()

    def _pass_on(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        if request.path.endswith("/get") and "embeddings" in json.loads(body).get("include", ()):
            assert self._permits.acquire(timeout=_LONGEST_S)
        answer = self._http.request(request.command, request.path, content=body, headers=headers)
        request.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP:
                request.send_header(name, value)
        request.send_header("content-length", str(len(answer.content)))
        request.end_headers()
        request.wfile.write(answer.content)


@contextmanager
def held(chroma_url: str) -> Iterator[Held]:
    """One that runs."""
    made = Held(chroma_url)
    thread = threading.Thread(target=made.serve, name="held Chroma")
    thread.start()
    try:
        yield made
    finally:
        made.end()
        thread.join()
