"""``torch.compile``, for once with a real compiler: the vectors are those of the model as it is."""

import copy
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch._dynamo.utils
import torch._inductor.async_compile
import torch._inductor.config

from embedder.backends.probes import Probes, probe_pixels
from embedder.backends.torch_clip import TorchBackend
from embedder.backends.towers import Towers, build_towers
from embedder.models import LoadedModel
from tests.processes import ROOT
from tests.unit.embedder import tiny


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What torch counts while it compiles; what it has compiled is kept from one run of the tests to the next.

    Optimised little, since each of a dozen kernels costs seconds: half a minute at first on two busy cores.
    """
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        pytest.skip(f"needs a C++ compiler: {name}")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        pytest.skip("needs Python.h")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(ROOT / "build" / "torchinductor"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = {"aot_inductor.debug_compile": True}
    with torch._inductor.config.patch(options):
        yield torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    torch._inductor.async_compile.shutdown_compile_workers()


def one_layer() -> tuple[Towers, Probes]:
    """The tiny model with a single block in each tower, and inputs."""
    vision, text = ({**tiny.MODEL_CONFIG[name], "layers": 1} for name in ("vision_cfg", "text_cfg"))
    torch.manual_seed(0)
    network = open_clip.CLIP(64, vision, text, quick_gelu=True).eval().requires_grad_(False)
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    texts = ["a", "a cat", "two dogs running on the beach", "a " * 200]
    probes = Probes(probe_pixels(64, 64), tokenizer(texts).numpy())
    loaded = LoadedModel("one layer", network, lambda _: torch.empty(0), tokenizer, tiny.PREPROCESS_CONFIG, {})
    return build_towers(loaded, probes.tokens, 0), probes


def test_a_compiled_model_gives_the_vectors_of_the_model_as_it_is(compiler: dict[str, Any]) -> None:
    towers, probes = one_layer()
    plain = TorchBackend(copy.deepcopy(towers), "cpu", "fp32", threads=1)
    compiled = TorchBackend(towers, "cpu", "fp32", threads=1, compiled=True)
    for rows in (8, 3):
        pixels = probes.pixels[:rows]
        assert np.abs(compiled.encode_images(pixels) - plain.encode_images(pixels)).max() < 1e-5
    for rows in (4, 3):
        tokens = probes.tokens[:rows]
        assert np.abs(compiled.encode_texts(tokens) - plain.encode_texts(tokens)).max() < 1e-5
    assert compiler["unique_graphs"] == 2, "one for each tower, whatever the size of the batch"
