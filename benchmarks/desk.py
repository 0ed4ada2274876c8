"""A contender's own end of the line that it is asked through. Nothing but the standard library: peers use it too."""

import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any

Request = dict[str, Any]
Answer = dict[str, Any]


class Desk:
    """A contender's own end: reads requests, writes answers, keeps everything else off its standard output."""

    def __init__(self) -> None:
        self._answers: IO[bytes] = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def say(self, answer: Answer) -> None:
        """Writes one answer."""
        self._answers.write(json.dumps(answer).encode() + b"\n")
        self._answers.flush()

    def read(self) -> Request | None:
        """The next request; None once there will be none."""
        text = sys.stdin.buffer.readline()
        if not text:
            return None
        request: Request = json.loads(text)
        return request

    def serve(self, about: Answer, measure: Callable[[Request], Answer]) -> None:
        """Says what this contender is and answers requests until there are none left."""
        self.say(about)
        while (request := self.read()) is not None:
            try:
                answer = measure(request)
            except Exception as error:
                answer = {"fault": f"{type(error).__name__}: {error}"}
            self.say(answer)
