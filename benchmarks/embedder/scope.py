"""How much is measured: what the command line chose."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WORK = ROOT / "build" / "benchmark"
SECTIONS = ("methods", "inputs", "load", "growth", "poison", "copies")
# Those of the cut.
QUICK_SECTIONS = SECTIONS[:4]


@dataclass(frozen=True)
class Target:
    """Which embedder is measured.

    Attributes:
        model: "starter", or an architecture that open_clip knows; it gets random weights.
        backend: as LIKENESS_BACKEND.
        precision: as LIKENESS_PRECISION.
        device: as LIKENESS_DEVICE.
    """

    model: str = "ViT-B-32"
    backend: str = "auto"
    precision: str = "auto"
    device: str = "auto"

    def environment(self, model: str) -> dict[str, str]:
        """The settings of an embedder; those around it do not reach it.

        Args:
            model: as LIKENESS_MODEL.
        """
        return {
            "LIKENESS_MODEL": model,
            "LIKENESS_BACKEND": self.backend,
            "LIKENESS_PRECISION": self.precision,
            "LIKENESS_DEVICE": self.device,
            "LIKENESS_LOG_LEVEL": "WARNING",
            "LIKENESS_LOG_STYLE": "json",
        }

    def __str__(self) -> str:
        return f"{self.model}, {self.backend}, {self.precision}, {self.device}"


@dataclass(frozen=True)
class Scope:
    """How long everything takes.

    Attributes:
        target: the embedder.
        quick: whether this is the cut that ends in a quarter of an hour.
        rounds: of pictures, all contenders in turn; medians are shown. A machine that others share changes its speed
            within seconds: many rounds of short windows tell more than few of long ones.
        text_rounds: of texts.
        window_s: one measurement of pictures.
        text_window_s: one of texts.
        ramp_s: before each, in which nothing counts.
        load_s: one step of the open-loop load.
        load_rounds: how often each step.
        memory_s: the run whose memory is watched, and half of it before, to warm up; of the cut a sixth.
        clients: processes that send; more where one is the limit.
        peers: whether other servers take part.
        install_s: longest time for installing them, all together.
    """

    target: Target
    quick: bool
    rounds: int
    text_rounds: int
    window_s: float
    text_window_s: float
    ramp_s: float
    load_s: float
    load_rounds: int
    memory_s: float
    clients: int
    peers: bool
    install_s: float

    @staticmethod
    def of(target: Target, quick: bool, clients: int, peers: bool) -> "Scope":
        """The whole measurement, or the cut."""
        if quick:  # on two cores, with all on disk: methods 9 to 10 minutes, inputs 0.7, load 3.5, growth 1.2
            return Scope(target, True, 5, 5, 5.0, 1.5, 0.7, 14.0, 3, 50.0, clients, peers, 120.0)
        return Scope(target, False, 9, 7, 6.0, 4.0, 1.5, 20.0, 5, 1200.0, clients, peers, 1800.0)

    def seconds(self, kind: str) -> float:
        """The window of one kind of input."""
        return self.text_window_s if kind.startswith("words") else self.window_s

    def rounds_of(self, kind: str) -> int:
        """The rounds of one kind of input."""
        return self.text_rounds if kind.startswith("words") else self.rounds


def surroundings(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without LIKENESS_* of its own, and with the settings given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIKENESS_")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "gen"), *filter(None, [kept.get("PYTHONPATH")])])
    return kept | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"} | dict(settings)
