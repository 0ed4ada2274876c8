"""What is logged: one JSON object a line, with the cause of a fault, and without the variables that it touched."""

import json

import pytest
import structlog

from chassis import logs
from chassis.errors import incident


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_logged_fault_shows_its_cause_but_neither_keys_nor_pictures(
    style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        token, picture = "s3cret-token", b"\xff\xd8picture"
        raise ZeroDivisionError(len(token) + len(picture))

    logs.configure("INFO", style, "test")
    try:
        fails()
    except ZeroDivisionError as error:
        shown = incident("failed", error)

    written = capsys.readouterr().err
    assert "ZeroDivisionError" in written
    assert "s3cret" not in written.replace('token, picture = "s3cret-token"', "")
    assert "xff" not in written.replace(r'b"\xff\xd8picture"', "")
    assert shown.message.split()[-1] in written
    if style == "json":
        line = json.loads(written.splitlines()[-1])
        assert (line["event"], line["service"], line["level"]) == ("failed", "test", "error")
        assert all("locals" not in frame for frame in line["exception"][0]["frames"])
    structlog.reset_defaults()
