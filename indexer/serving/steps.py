"""What takes long on the way to an answer, told apart from the rest: whoever asks for the answer says where it runs."""

from collections.abc import Callable, Generator
from typing import Any, TypeVar

Answer = TypeVar("Answer")
# To be carried out anywhere; what it gives is sent to the one that asks for it.
Step = Callable[[], Any]
Steps = Generator[Step, Any, Answer]


def carried_out(steps: Steps[Answer]) -> Answer:
    """What steps lead to, each carried out here."""
    found: Any = None
    while True:
        try:
            step = steps.send(found)
        except StopIteration as end:
            led_to: Answer = end.value
            return led_to
        found = step()
