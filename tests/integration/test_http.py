"""The gateway by HTTP as a process of its own: what the README shows works as it stands there."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from likeness.gateway.v1 import gateway_pb2

from deploy.local import Services
from tests.integration.conftest import Stub
from tests.processes import ROOT, environment

_BLOCK = re.compile(r"^### By HTTP$.*?^```sh\n(?P<text>.*?)^```$", re.M | re.S)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_commands_of_the_readme_work_as_pasted(services: Services, stub: Stub, tmp_path: Path) -> None:
    found = _BLOCK.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    assert services.http is not None
    text = found["text"].replace("localhost:8080", services.http).replace(".venv/", f"{ROOT}/.venv/")
    assert text.count("curl ") == 8

    # Every answer but those that go to a file, on a line of its own; one that says that it failed ends it.
    script = f'curl() {{ command curl --fail-with-body "$@"; echo; }}\n{text}'
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment({"LIKENESS_API_KEY": ""}),
        capture_output=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, (done.stdout, done.stderr)
    taken, searched, _, counted, duplicates, status, deleted, _ = done.stdout.split(b"\n")[:-1]
    assert json.loads(taken)["results"][0]["id"] == "chelsea"
    assert [hit["item"]["id"] for hit in json.loads(searched)["hits"]] == ["chelsea"]
    assert json.loads(counted) == {"count": "1"}
    assert duplicates.endswith(b"\x02\x00\x00\x00\x02{}")
    assert json.loads(status)["version"]
    assert json.loads(deleted) == {}
    assert (tmp_path / "chelsea.webp").read_bytes()[8:12] == b"WEBP"
    assert json.loads((tmp_path / "openapi.json").read_text())["openapi"] == "3.1.0"
    left = {each.name for each in stub.GetStatus(gateway_pb2.GetStatusRequest(), timeout=30).collections}
    assert "by-http" not in left


def test_the_figures_of_the_gateway_and_of_its_process_are_at_its_http_port(services: Services) -> None:
    shown = httpx.get(f"http://{services.http}/metrics", timeout=30, trust_env=False).text

    assert "likeness_gateway_calls_total" in shown
    assert "process_resident_memory_bytes" in shown
