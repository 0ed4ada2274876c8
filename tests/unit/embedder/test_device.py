"""``LIKENESS_DEVICE``: which device is taken, and that the log says which and why."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
import torch

from embedder import engine
from embedder.engine import Engine, load_engine
from embedder.settings import EmbedderSettings
from tests.unit.embedder import fake_worker as fake


def chosen(monkeypatch: pytest.MonkeyPatch, device: str) -> tuple[str, str]:
    """The device of a model that is loaded by this setting, and the reason that the log gives for it."""

    def load(_: EmbedderSettings, device: str) -> Engine:
        return Engine(fake.spec(device), fake.FakeBackend(device))

    monkeypatch.setattr(engine, "_on_torch", load)
    with structlog.testing.capture_logs() as logs:
        loaded = load_engine(EmbedderSettings(device=device, backend="torch"))
    (said,) = [line for line in logs if line["event"] == "device chosen"]
    assert said["device"] == loaded.spec.device, "what the log says is what the model runs on"
    return said["device"], said["reason"]


@dataclass(frozen=True)
class Machine:
    """What a machine shows of GPUs: a device file, and what torch finds."""

    has_file: bool = True
    cuda: int = 0
    mps: bool = False

    def pretend(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = folder / "gpu"
        if self.has_file:
            file.touch()
        monkeypatch.setattr(engine, "_GPU_FILES", (str(file),))
        monkeypatch.setattr("embedder.engine.sys.platform", "linux")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: self.cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: self.cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: self.mps)


@pytest.mark.parametrize(
    ("wanted", "machine", "said"),
    [
        ("auto", Machine(has_file=False), ("cpu", "there is no GPU's device file")),
        ("auto", Machine(), ("cpu", "torch finds no GPU")),
        ("auto", Machine(cuda=2), ("cuda:0", "torch finds CUDA; process 0 of those that share 2 GPUs")),
        ("auto", Machine(cuda=1, mps=True), ("cuda:0", "torch finds CUDA; process 0 of those that share 1 GPUs")),
        ("auto", Machine(mps=True), ("mps", "torch finds an Apple GPU")),
        ("cpu", Machine(cuda=2), ("cpu", "LIKENESS_DEVICE names it")),
        ("cuda", Machine(False, 2), ("cuda:0", "LIKENESS_DEVICE names it; process 0 of those that share 2 GPUs")),
        ("cuda:1", Machine(False, 2), ("cuda:1", "LIKENESS_DEVICE names it")),
    ],
)
def test_the_log_says_which_device_is_taken_and_why(
    wanted: str, machine: Machine, said: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.pretend(tmp_path, monkeypatch)
    assert chosen(monkeypatch, wanted) == said


def test_each_of_several_processes_says_which_gpu_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(cuda=2).pretend(tmp_path, monkeypatch)
    monkeypatch.setenv("LIKENESS_WORKER_INDEX", "3")
    assert chosen(monkeypatch, "auto") == ("cuda:1", "torch finds CUDA; process 3 of those that share 2 GPUs")
