"""What the embedder's benchmark measures, before anything runs."""

from pathlib import Path

import pytest

from benchmarks.embedder import peers
from benchmarks.embedder.methods import PICTURE, batches
from benchmarks.embedder.processes import FailedError
from benchmarks.embedder.scope import Scope, Target


def test_batch_sizes_suit_the_device_that_auto_became() -> None:
    scope = Scope.of(Target(device="auto"), quick=True, clients=1, peers=False)
    assert max(batches(scope, PICTURE, "cpu")) == 16
    assert 64 in batches(scope, PICTURE, "cuda:0")


def test_a_peer_without_a_model_is_a_contender_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "WORK", tmp_path)
    monkeypatch.setattr(peers, "python_of", lambda _: Path("/bin/false"))
    with pytest.raises(FailedError, match="ViT-H-14"):
        peers.infinity_model("ViT-H-14")
