"""W3C's traceparent: what is taken for one, what is passed on, and which lines of the log carry the id."""

import json
import re
import subprocess
import sys

import pytest

from chassis import trace
from chassis.trace import TRACEPARENT, Trace

ID, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = f"00-{ID}-{PARENT}-01"


def passed_on(of: Trace) -> list[str]:
    """The parts of the traceparent that goes with calls made for this one."""
    ((name, value),) = of.metadata
    assert name == TRACEPARENT
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", value)
    return value.split("-")


def test_what_a_caller_sends_is_gone_on_with_under_a_parent_of_our_own() -> None:
    one, other = (Trace.of([("x-api-key", "k"), (TRACEPARENT, SENT)]) for _ in range(2))

    assert (one.id, one.parent_id) == (ID, PARENT)
    _, trace_id, parent_id, flags = passed_on(one)
    assert (trace_id, flags) == (ID, "01")
    assert parent_id == one.span_id
    assert len({PARENT, one.span_id, other.span_id}) == 3
    assert one.metadata == one.metadata


@pytest.mark.parametrize(("sent", "flags"), [("00", "00"), ("01", "01"), ("03", "03"), ("ff", "03"), ("fc", "00")])
def test_flags_are_passed_on_as_far_as_they_are_known(sent: str, flags: str) -> None:
    assert passed_on(Trace.of([(TRACEPARENT, f"00-{ID}-{PARENT}-{sent}")]))[-1] == flags


@pytest.mark.parametrize("sent", [f"cc-{ID}-{PARENT}-01", f"cc-{ID}-{PARENT}-01-what-comes-later"])
def test_a_later_version_is_read_as_far_as_it_is_known(sent: str) -> None:
    read = Trace.of([(TRACEPARENT, sent)])
    assert (read.id, read.parent_id) == (ID, PARENT)


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "nonsense",
        f"ff-{ID}-{PARENT}-01",
        f"00-{ID}-{PARENT}",
        f"00-{ID}-{PARENT}-1",
        f"00-{ID}-{PARENT}-01-more",
        f"00-{ID}-{PARENT}-01\n",
        f"cc-{ID}-{PARENT}-01more",
        f"00-{ID.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{ID}-{'0' * 16}-01",
        f"00-{ID[1:]}-{PARENT}-01",
    ],
)
def test_what_is_no_traceparent_begins_a_new_trace(sent: str) -> None:
    read = Trace.of([(TRACEPARENT, sent)])
    assert re.fullmatch(r"[0-9a-f]{32}", read.id)
    assert read.id != ID
    assert read.parent_id is None
    assert passed_on(read)[-1] == "00"


@pytest.mark.parametrize("metadata", [[], [("x-api-key", "k")], [(TRACEPARENT, SENT)] * 2, [(TRACEPARENT, b"raw")]])
def test_a_call_without_one_or_with_two_begins_a_trace_that_is_like_no_other(
    metadata: list[tuple[str, str | bytes]],
) -> None:
    assert len({ID, *(Trace.of(metadata).id for _ in range(100))}) == 101


def test_calls_that_are_made_for_none_bring_nothing() -> None:
    assert trace.passed_on() == ()
    entered = trace.enter(one := Trace.of([]))
    assert trace.passed_on() == one.metadata
    trace.leave(entered)
    assert trace.passed_on() == ()


# In a process of its own: how logs are written is set once for a whole process.
PROGRAM = """
import asyncio, logging, sys, threading
import structlog
from chassis import logs, trace

logs.configure("INFO", sys.argv[1], "test")
log, library = structlog.get_logger(), logging.getLogger("library")

async def main():
    entered = trace.enter(trace.Trace.of([("traceparent", sys.argv[2])]))
    log.info("inside")
    library.warning("a library's")
    await asyncio.create_task(asyncio.to_thread(log.info, "in a task's thread"))
    log.info("another's", trace_id="its own")
    bare = threading.Thread(target=log.info, args=["apart"])
    bare.start()
    bare.join()
    trace.leave(entered)
    log.info("outside")

asyncio.run(main())
"""


def test_every_line_that_is_written_for_a_call_carries_its_id_and_no_other_does() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "json", SENT], capture_output=True, text=True, check=True)

    lines = {line["event"]: line.get("trace_id") for line in map(json.loads, done.stderr.splitlines())}
    assert lines == {
        "inside": ID,
        "a library's": ID,
        "in a task's thread": ID,
        "another's": "its own",
        "apart": None,
        "outside": None,
    }


def test_on_a_terminal_too() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "console", SENT], capture_output=True, text=True, check=True)

    carrying = [line for line in done.stderr.splitlines() if ID in line]
    assert len(carrying) == 3
