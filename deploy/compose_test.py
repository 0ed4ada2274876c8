"""``make compose-test``: deploy/compose.yaml brought up on its own port, used from outside, scaled, hurt, taken down.

It needs docker with compose. Pictures go in and searches come back through the published port, by the ``likeness``
command of this environment. Containers, volumes and networks are gone afterwards, also when a step fails; the images
stay. The steps follow from each other, so the first failure ends the run.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import httpx

from deploy.demo import LIKENESS, mirrored_crop, sample_pictures
from deploy.local import ROOT, free_ports

SERVICES = ("gateway", "embedder", "indexer", "chroma")
CONNECTION_AGE_S = 5
BUILD_S, START_S, SETTLE_S, STOP_S = 1800.0, 300.0, 60.0, 120.0

_HAS_TORCH = "import importlib.util; print(importlib.util.find_spec('torch') is not None)"
# Prints the model and, to three places, a text's vector, from inside an embedder's container.
_EMBED = """
import grpc, numpy
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
with grpc.insecure_channel("127.0.0.1:50051") as channel:
    stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
    answer = stub.Embed(embedder_pb2.EmbedRequest(inputs=[embedder_pb2.EmbedInput(text="a cat")]), timeout=60)
vector = numpy.frombuffer(answer.results[0].vector.f32, "<f4")
print(answer.fingerprint.digest, [round(float(x), 3) + 0.0 for x in vector])
"""


class StepError(Exception):
    """A step did not hold what its name promises; the message says what was seen."""


class Project:
    """The compose project under test: its containers and the gateway's ports on this machine."""

    def __init__(self, port: int, http_port: int) -> None:
        self._address = f"127.0.0.1:{port}"
        self.http = f"http://127.0.0.1:{http_port}"
        self.name = f"likeness-test-{port}"
        # Nothing of the caller's own settings, be it from the shell or from a file deploy/.env.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LIKENESS_", "COMPOSE_"))}
        self._environment = inherited | {
            "LIKENESS_GATEWAY_PORT": str(port),
            "LIKENESS_HTTP_PORT": str(http_port),
            "LIKENESS_LOG_LEVEL": "DEBUG",
            "LIKENESS_MAX_CONNECTION_AGE_S": str(CONNECTION_AGE_S),
        }

    def compose(self, *arguments: str, timeout_s: float = START_S) -> str:
        """Runs one compose command; returns what it wrote to standard output."""
        file = str(ROOT / "deploy" / "compose.yaml")
        command = ["docker", "compose", "--project-name", self.name, "--env-file", os.devnull, "--file", file]
        return _run([*command, *arguments], timeout_s, self._environment)

    def start(self, *arguments: str) -> None:
        """Starts what is not running; returns when every service is healthy."""
        self.compose("up", "--no-build", "--no-recreate", "--wait", "--wait-timeout", str(int(START_S)), *arguments)

    def containers(self, service: str = "") -> list[dict[str, Any]]:
        """What docker knows about the containers, running or not, of one service or of all; the oldest first."""
        identifiers = self.compose("ps", "--all", "--quiet", *filter(None, [service])).split()
        found = json.loads(_run(["docker", "inspect", *identifiers], SETTLE_S)) if identifiers else []
        return sorted(found, key=lambda container: str(container["Created"]))

    def likeness(self, command: str, *arguments: str) -> str:
        """Runs the command line of this environment against the published port; returns its standard output."""
        return _run([str(LIKENESS), command, "--server", self._address, *arguments], SETTLE_S)

    def search(self, *query: str, top_k: int = 3) -> list[str]:
        """The names of the pictures found, best first."""
        answer = self.likeness("search", *query, "--top-k", str(top_k), "--format", "json")
        return [Path(str(hit["uri"])).name for hit in json.loads(answer)["hits"]]


class Steps:
    """The steps, each with its promise as docstring."""

    def __init__(self, project: Project, scratch: Path) -> None:
        self._project = project
        self._scratch = scratch
        self._pictures = scratch / "pictures"

    def all(self) -> list[Callable[[], None]]:
        """The steps in their order."""
        return [
            self.build,
            self.start,
            self.index,
            self.search,
            self.http,
            self.ports,
            self.users,
            self.torch,
            self.without_torch,
            self.scale,
            self.kill,
            self.restart,
            self.stop,
        ]

    def build(self) -> None:
        """The images build."""
        self._project.compose("build", "--progress", "plain", timeout_s=BUILD_S)

    def start(self) -> None:
        """Every service becomes healthy."""
        self._project.start()
        health = {_service(c): c["State"]["Health"]["Status"] for c in self._project.containers()}
        _expect(health, dict.fromkeys(SERVICES, "healthy"))

    def index(self) -> None:
        """Pictures are taken in through the published port."""
        self._pictures.mkdir()
        sample_pictures(self._pictures)
        self._project.likeness("index", str(self._pictures))
        _expect(self._found(), self._names())

    def search(self) -> None:
        """Texts and pictures find the right picture."""
        crop = self._scratch / "mirrored-crop-of-the-cat.jpg"
        mirrored_crop(self._pictures / "cat.png", crop)
        _expect(self._project.search("--text", "a cat")[0], "cat.png")
        _expect(self._project.search("--text", "a rocket launch")[0], "rocket-launch.jpg")
        _expect(self._project.search("--image", str(crop))[0], "cat.png")

    def http(self) -> None:
        """The gateway answers by HTTP too."""
        answer = httpx.get(f"{self._project.http}/readyz", timeout=SETTLE_S, trust_env=False)
        _expect((answer.status_code, answer.text.split(":")[0]), (200, "ready"))

    def ports(self) -> None:
        """Only the gateway is published, and only on loopback."""
        published = {
            (_service(container), binding["HostIp"])
            for container in self._project.containers()
            for bindings in container["NetworkSettings"]["Ports"].values()
            for binding in bindings or []
        }
        _expect(published, {("gateway", "127.0.0.1")})

    def users(self) -> None:
        """No process runs as root."""
        for container in self._project.containers():
            _, *processes = _run(["docker", "top", container["Id"], "-eo", "pid,uid"], SETTLE_S).splitlines()
            users = {process.split()[1] for process in processes}
            _expect((_service(container), users), (_service(container), {"10001"}))

    def torch(self) -> None:
        """Only the embedder carries torch."""
        carries = {s: self._project.compose("exec", "-T", s, "python3", "-c", _HAS_TORCH).strip() for s in SERVICES}
        _expect(carries, dict.fromkeys(SERVICES, "False") | {"embedder": "True"})

    def without_torch(self) -> None:
        """An image without torch serves what the embedder has converted, with the same vectors."""
        image = "likeness-embedder-openvino"
        _run(
            [
                "docker",
                "build",
                "-f",
                "deploy/Dockerfile",
                "--target",
                image.removeprefix("likeness-"),
                "-t",
                image,
                ".",
            ],
            BUILD_S,
        )
        found = self._project.compose("exec", "-T", "embedder", "sh", "-c", "dirname /cache/likeness/*/model.json")
        (folder,) = found.split()
        mounts = ["--volume", f"{self._project.name}_models:/cache:ro", "--env", f"LIKENESS_MODEL=openvino:{folder}"]
        hardened = ["--read-only", "--tmpfs", "/tmp", "--network", "none"]  # noqa: S108 (in the container)
        container = _run(["docker", "run", "--detach", *hardened, *mounts, image], SETTLE_S).strip()
        try:
            ask = ["docker", "exec", container, "python3"]
            _run([*ask, "-m", "chassis.health", "--wait", "60", "127.0.0.1:50051"], SETTLE_S)
            _expect(_run([*ask, "-c", _HAS_TORCH], SETTLE_S).strip(), "False")
            vectors = _run([*ask, "-c", _EMBED], SETTLE_S)
        finally:
            _run(["docker", "rm", "--force", container], SETTLE_S)
        _expect(vectors, self._project.compose("exec", "-T", "embedder", "python3", "-c", _EMBED))

    def scale(self) -> None:
        """A second embedder gets its share of the calls."""
        self._project.start("--scale", "embedder=2")
        replicas = [str(container["Id"]) for container in self._project.containers("embedder")]
        _expect(len(replicas), 2)
        before = [_embed_calls(replica) for replica in replicas]
        served = [False, False]
        deadline = time.monotonic() + SETTLE_S
        searches = 0
        while not all(served):
            if time.monotonic() > deadline:
                raise StepError(f"after {searches} searches in {SETTLE_S:g} s, this is which replica served: {served}")
            _expect(self._project.search("--text", f"a cat, picture {searches}")[0], "cat.png")
            searches += 1
            served = [_embed_calls(replica) > calls for replica, calls in zip(replicas, before, strict=True)]

    def kill(self) -> None:
        """No search fails when an embedder is killed."""
        first, second = [str(container["Id"]) for container in self._project.containers("embedder")]
        before = _embed_calls(second)
        _run(["docker", "kill", first], SETTLE_S)
        for number in range(5):
            _expect(self._project.search("--text", f"a rocket launch, number {number}")[0], "rocket-launch.jpg")
        _expect(_embed_calls(second) - before, 5)

    def restart(self) -> None:
        """Everything is still there when indexer and Chroma have been killed, and Chroma's files are looked through."""
        killed = [str(each["Id"]) for name in ("chroma", "indexer") for each in self._project.containers(name)]
        _run(["docker", "kill", *killed], SETTLE_S)
        self._project.start("--scale", "embedder=2")
        _expect(self._found(), self._names())
        _expect(self._project.search("--text", "a cat")[0], "cat.png")
        # Made when that was done: without them names that are cut off cannot be mended.
        self._project.compose("exec", "-T", "chroma", "test", "-e", "/data/names/complete")

    def stop(self) -> None:
        """Every service ends cleanly when asked to."""
        self._project.compose("stop", timeout_s=STOP_S)
        codes = [(_service(c), c["State"]["ExitCode"]) for c in self._project.containers()]
        _expect(sorted(codes), sorted((service, 0) for service in (*SERVICES, "embedder")))

    def _names(self) -> set[str]:
        return {picture.name for picture in self._pictures.iterdir()}

    def _found(self) -> set[str]:
        return set(self._project.search("--text", "a photograph", top_k=100))


def _embed_calls(container: str) -> int:
    """How many calls of Embed a replica's log tells of."""
    # The services log to standard error, one JSON object a line.
    result = subprocess.run(["docker", "logs", container], capture_output=True, text=True, timeout=SETTLE_S, check=True)
    events = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    return sum(e.get("event") == "call" and str(e.get("method")).endswith("EmbedderService/Embed") for e in events)


def _service(container: dict[str, Any]) -> str:
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def _expect(seen: object, wanted: object) -> None:
    if seen != wanted:
        raise StepError(f"expected {wanted}\n     seen {seen}")


def _run(command: Sequence[str], timeout_s: float, environment: dict[str, str] | None = None) -> str:
    """Runs a command to its end; returns its standard output.

    Raises:
        StepError: it failed or took too long.
    """
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT
        )
    except subprocess.TimeoutExpired as error:
        raise StepError(f"`{' '.join(command)}` had not ended after {timeout_s:g} s") from error
    if result.returncode:
        end = "\n".join((result.stdout + result.stderr).splitlines()[-40:])
        raise StepError(f"`{' '.join(command)}` ended with exit code {result.returncode}:\n{end}")
    return result.stdout


def _terminated(_signal: int, _frame: object) -> NoReturn:
    sys.exit(143)


def main() -> int:
    """Runs the steps; returns the exit code."""
    signal.signal(signal.SIGTERM, _terminated)  # so that the containers go when this process is asked to
    ports = free_ports()
    project = Project(int(ports["LIKENESS_GATEWAY_PORT"]), int(ports["LIKENESS_HTTP_PORT"]))
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="likeness-compose-") as scratch:
        try:
            for step in Steps(project, Path(scratch)).all():
                print(step.__doc__, end=" ", flush=True)
                began = time.monotonic()
                step()
                passed += 1
                print(f"ok ({time.monotonic() - began:.0f} s)", flush=True)
        except StepError as error:
            failed = 1
            print(f"FAILED\n{error}\n\nThe ends of the logs:", flush=True)
            print(project.compose("logs", "--no-color", "--tail", "20"), flush=True)
        finally:
            project.compose("down", "--volumes", "--remove-orphans", "--timeout", "10")
    print(f"{passed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main())
