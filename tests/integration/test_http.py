"""The gateway by HTTP as a process of its own: what the README shows works as it stands there."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from likeness.gateway.v1 import gateway_pb2

from deploy.local import Services
from tests.integration.conftest import Stub
from tests.integration.test_ingest import expected_reason
from tests.pictures import noise, shared
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


def test_poisonous_pictures_by_http_are_refused_alone_and_their_neighbours_stored(
    services: Services,
) -> None:
    folder = shared("poison")
    rows = [line.split("\t") for line in (folder / "manifest.tsv").read_text().splitlines()[1:]]
    items = []
    for i, row in enumerate(rows):
        items.append(as_json(f"poison-{i}", (folder / row[0]).read_bytes()))
        items.append(as_json(f"neighbour-{i}", noise(700 + i)))
    results = []
    with httpx.Client(base_url=f"http://{services.http}", timeout=100, trust_env=False) as client:
        for start in range(0, len(items), 64):
            batch = {"collection": "http-poison", "createCollection": True, "items": items[start : start + 64]}
            answer = client.post("/likeness.gateway.v1.SearchService/IndexBatch", json=batch)
            assert answer.status_code == 200, answer.text
            results += answer.json()["results"]

    assert [each["id"] for each in results] == [each["id"] for each in items]
    stored = {each["id"]: "stored" in each for each in results}
    assert {row[0]: stored[f"poison-{i}"] for i, row in enumerate(rows)} == {row[0]: row[1] == "ok" for row in rows}
    assert all(stored[f"neighbour-{i}"] for i in range(len(rows)))
    for row, result in zip(rows, results[::2], strict=True):
        if row[1] == "reject":
            assert result["error"]["reason"] == f"REASON_{expected_reason(row[0])}"
            assert result["error"]["status"]["details"][0]["domain"] == "likeness"


def as_json(item_id: str, picture: bytes) -> dict[str, Any]:
    """A picture to take in."""
    return {"id": item_id, "image": {"encoded": base64.b64encode(picture).decode()}}


def test_the_figures_of_the_gateway_and_of_its_process_are_at_its_http_port(services: Services) -> None:
    shown = httpx.get(f"http://{services.http}/metrics", timeout=30, trust_env=False).text

    assert "likeness_gateway_calls_total" in shown
    assert "process_resident_memory_bytes" in shown
