"""The converted form gives torch's vectors, and what is damaged or foreign is not used."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedder.backends import convert, is_out_of_memory, openvino_clip
from embedder.backends.convert import ConversionError, cached, converted
from embedder.backends.openvino_clip import (
    ConvertedModel,
    OpenVinoBackend,
    UnusableFolderError,
    read_folder,
)
from embedder.backends.openvino_formats import open_converted
from embedder.backends.probes import Probes, vectors
from embedder.backends.torch_clip import TorchBackend
from embedder.backends.towers import Towers
from embedder.inputs import Array
from embedder.spec import ModelSpec

Identity = tuple[ModelSpec, Probes]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(converted_once: Path, tmp_path: Path) -> Path:
    """A converted model to spoil."""
    return Path(shutil.copytree(converted_once, tmp_path / "cache" / converted_once.name))


def filled(spec: ModelSpec, towers: Towers) -> ModelSpec:
    return replace(spec, backend="openvino", dimension=towers.dimension, texts_cut=towers.texts_cut)


def backend_of(folder: Path) -> OpenVinoBackend:
    return open_converted(read_folder(folder), "fp32", threads=1)


def test_openvino_gives_torchs_vectors(converted_once: Path, tiny_towers: Towers, tiny_identity: Identity) -> None:
    probes = tiny_identity[1]
    ours, theirs = backend_of(converted_once), TorchBackend(tiny_towers, "cpu", "fp32", threads=1)
    for got, expected in zip(vectors(ours, probes), vectors(theirs, probes), strict=True):
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() < 1e-5
    assert (ours.device, ours.precision, ours.dimension) == ("cpu", "fp32", 64)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_vector_does_not_depend_on_its_batch(converted_once: Path, threads: int) -> None:
    backend = open_converted(read_folder(converted_once), "fp32", threads)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    together = backend.encode_images(pixels)
    alone = np.concatenate([backend.encode_images(pixels[n : n + 1]) for n in range(8)])
    assert np.abs(together - alone).max() < 1e-4


def test_a_text_cut_to_its_own_length_keeps_its_vector(converted_once: Path, tiny_identity: Identity) -> None:
    backend, tokens = backend_of(converted_once), tiny_identity[1].tokens
    full = backend.encode_texts(tokens)
    for row, expected in zip(tokens, full, strict=True):
        length = int(np.flatnonzero(row).max()) + 1
        assert np.abs(backend.encode_texts(row[None, :length])[0] - expected).max() < 1e-5


def test_a_batchs_vectors_outlive_the_next_batch(converted_once: Path, tiny_identity: Identity) -> None:
    backend, pixels = backend_of(converted_once), tiny_identity[1].pixels
    first = backend.encode_images(pixels)
    kept = first.copy()
    backend.encode_images(255 - pixels)
    assert np.array_equal(first, kept)


def test_pixels_need_not_lie_together_in_memory(converted_once: Path, tiny_identity: Identity) -> None:
    backend, pixels = backend_of(converted_once), tiny_identity[1].pixels
    assert np.allclose(backend.encode_images(pixels[::2]), backend.encode_images(pixels)[::2], atol=1e-5)


def test_weights_are_kept_in_float32(converted_once: Path, tiny_towers: Towers) -> None:
    weights = sum(p.numel() for p in tiny_towers.image.parameters())
    assert (converted_once / "image.bin").stat().st_size > 3 * weights  # zeros are kept once


def test_a_second_conversion_finds_the_first(
    folder: Path, tiny_towers: Towers, tiny_identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_convert", lambda *_: pytest.fail("converted again"))
    spec, probes = tiny_identity
    assert converted(folder.parent, tiny_towers, filled(spec, tiny_towers), probes, threads=1) == folder


def test_what_a_killed_conversion_left_is_cleared_away(
    tmp_path: Path, tiny_towers: Towers, tiny_identity: Identity
) -> None:
    spec, probes = tiny_identity
    first = converted(tmp_path, tiny_towers, filled(spec, tiny_towers), probes, threads=1)
    left = tmp_path / f".converting-{first.name}-abc"
    first.rename(left)  # as if it had been killed before its last step
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the tracer's are muted
        made = converted(tmp_path, tiny_towers, filled(spec, tiny_towers), probes, threads=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{made.name}.lock", made.name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 0}, "of format 0"),
        ({"decode_rules": 0}, "decoding rules 0"),
        ({"spec": {"name": "x"}}, "describes no converted model"),
        ({"files": {}}, "describes no converted model"),
        ({"probe_tokens": "none"}, "describes no converted model"),
    ],
)
def test_a_folder_that_says_something_else_is_refused(folder: Path, change: dict[str, object], reason: str) -> None:
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(description | change))
    with pytest.raises(UnusableFolderError, match=reason):
        read_folder(folder)


@pytest.mark.parametrize("name", ["image.xml", "image.bin", "text.xml", "text.bin"])
def test_one_changed_byte_is_noticed(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UnusableFolderError, match=f"{name} is damaged"):
        read_folder(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "text.bin").unlink()
    with pytest.raises(UnusableFolderError, match=r"text\.bin cannot be read: No such file"):
        read_folder(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", "\x00", '{"format": 1}'])
def test_a_description_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / "model.json").write_text(content)
    with pytest.raises(UnusableFolderError, match="describes no converted model"):
        read_folder(folder)


def test_what_another_openvino_made_is_not_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, _ = folder.name.split("-")
    assert cached(folder.parent, digest) == folder
    monkeypatch.setattr(convert, "version", lambda _: "1999.1")
    assert cached(folder.parent, digest) is None


def test_another_models_folder_is_not_found(folder: Path) -> None:
    _, converter = folder.name.split("-")
    folder.rename(folder.with_name(f"{'0' * 64}-{converter}"))
    assert cached(folder.parent, "0" * 64) is None


def test_a_conversion_that_changes_vectors_is_given_up(
    tmp_path: Path, tiny_towers: Towers, tiny_identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, probes = tiny_identity

    def wrong(*arguments: object) -> list[Array]:
        return [part[::-1] if isinstance(arguments[0], OpenVinoBackend) else part for part in vectors(*arguments)]  # type: ignore[arg-type]

    monkeypatch.setattr(convert, "vectors", wrong)
    with pytest.raises(ConversionError, match="have a cosine of"):
        converted(tmp_path, tiny_towers, filled(spec, tiny_towers), probes, threads=1)
    assert cached(tmp_path, spec.digest) is None


def test_a_spec_comes_back_as_it_went(converted_once: Path, tiny_towers: Towers, tiny_identity: Identity) -> None:
    model: ConvertedModel = read_folder(converted_once)
    assert model.spec == filled(tiny_identity[0], tiny_towers)
    assert np.array_equal(model.probes.pixels, tiny_identity[1].pixels)
    assert np.array_equal(model.probes.tokens, tiny_identity[1].tokens)


def test_openvinos_own_failures_are_told_from_a_want_of_memory(converted_once: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        backend_of(converted_once).encode_images(np.zeros((1, 63, 64, 3), np.uint8))
    assert not is_out_of_memory(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_kept_for_texts_of_ever_new_shapes_is_limited(converted_once: Path) -> None:
    # In a process of its own, whose memory is the model's alone, as a model process has it.
    script = """
import sys
from pathlib import Path
import numpy as np
from embedder.allocator import keep_freed_memory, share_one_arena
from embedder.backends.openvino_clip import OpenVinoBackend
share_one_arena()
backend = OpenVinoBackend(Path(sys.argv[1]), 64, "fp32", 1)
keep_freed_memory()
shapes = np.array([(count, length) for count in range(1, 73) for length in range(3, 17)])
np.random.default_rng(0).shuffle(shapes)
backend.encode_texts(np.ones((72, 16), np.int64))  # no later one takes more room to compute in
for number, shape in enumerate(shapes):
    backend.encode_texts(np.ones(shape, np.int64))
    if number in (300, 1000):
        status = Path("/proc/self/status").read_text()
        print(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))
"""
    set_already = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
    environment = {name: value for name, value in os.environ.items() if name not in set_already}
    command = [sys.executable, "-c", script, str(converted_once)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    before, after = map(int, run.stdout.split())
    assert after - before < 12 * 1024, "KiB more after 700 further shapes"


@pytest.mark.parametrize(("weights", "threads", "parted"), [(2**27, 2, True), (2**27 - 1, 2, False), (2**27, 1, False)])
def test_the_work_of_a_large_tower_is_parted_where_threads_share_it(
    tmp_path: Path, weights: int, threads: int, parted: bool
) -> None:
    file = tmp_path / "image.bin"
    with file.open("wb") as opened:
        opened.truncate(weights)
    assert ("TBB_PARTITIONER" in openvino_clip._of_tower(file, threads)) is parted
