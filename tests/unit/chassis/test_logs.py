"""What is logged: one JSON object a line, with the cause of a fault, and without the variables that it touched."""

import json
import subprocess
import sys

import pytest

# In a process of its own: how logs are written is set once for a whole process.
PROGRAM = """
import sys
from chassis import logs
from chassis.errors import incident

def fails():
    token, picture = "s3cret" + "-token", bytes([255, 216]) + b"picture"
    raise ZeroDivisionError(len(token) + len(picture))

logs.configure("INFO", sys.argv[1], "test")
try:
    fails()
except ZeroDivisionError as error:
    print(incident("failed", error).message)
"""


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_logged_fault_shows_its_cause_but_neither_keys_nor_pictures(style: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, style], capture_output=True, text=True, check=True)

    assert "ZeroDivisionError" in done.stderr
    assert "s3cret-token" not in done.stderr
    assert "xff" not in done.stderr
    assert done.stdout.split()[-1] in done.stderr
    if style == "json":
        line = json.loads(done.stderr.splitlines()[-1])
        assert (line["event"], line["service"], line["level"]) == ("failed", "test", "error")
        assert all("locals" not in frame for frame in line["exception"][0]["frames"])


FORGING = """
import logging, sys
import structlog
from chassis import logs

logs.configure("INFO", sys.argv[1], "test")
structlog.get_logger().info("call", id="a\\r\\nforged=1 \\x1b[2J", key="a\\x1b[2J", model={"name": "\\x1b[2J"})
logging.getLogger("library").warning("no route to %s", "b\\nforged=2\\x1b[2J")
"""


@pytest.mark.parametrize("style", ["json", "console"])
def test_what_a_client_sends_begins_no_line_and_commands_no_terminal(style: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORGING, style], capture_output=True, text=True, check=True)

    assert len(done.stderr.splitlines()) == 2
    assert "\x1b[2J" not in done.stderr
    assert "forged=1" in done.stderr
    assert "forged=2" in done.stderr


FAILING = """
import sys
import structlog
from chassis import logs

logs.configure("INFO", sys.argv[1], "test")
try:
    raise ValueError("no picture: \\x1b[2J")
except ValueError:
    structlog.get_logger().exception("failed")
"""


@pytest.mark.parametrize("style", ["json", "console"])
def test_what_a_failure_says_commands_no_terminal(style: str) -> None:
    done = subprocess.run([sys.executable, "-c", FAILING, style], capture_output=True, text=True, check=True)

    assert "\x1b[2J" not in done.stderr
    assert "no picture: " in done.stderr
