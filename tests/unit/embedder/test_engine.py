"""From settings to a model that runs: what is chosen, and what is done where that cannot be had."""

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, invalid
from embedder import engine
from embedder.backends.convert import ConversionError
from embedder.backends.preparation import LeftOutError, Prepared, cache_folder, prepare, prepare_elsewhere
from embedder.backends.probes import least_cosine, probe_pixels
from embedder.engine import Engine, choose_backend, load_engine
from embedder.settings import EmbedderSettings
from tests.unit.embedder import tiny

ROOT = Path(__file__).resolve().parents[3]
EVERY = {"fp32", "bf16", "fp16", "int8"}

# Run with a folder: serves it in a process in which nothing of torch can be imported, and prints three of its numbers.
WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "open_clip", "timm", "transformers"}:
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Blocked())
import numpy as np
from embedder.engine import load_engine
from embedder.settings import EmbedderSettings
engine = load_engine(EmbedderSettings(model=f"openvino:{sys.argv[1]}", model_threads=1, precision="fp32"))
vectors = engine.backend.encode_images(np.full((1, 64, 64, 3), 128, np.uint8))
assert "torch" not in sys.modules and "openvino_telemetry" not in {k for k, v in sys.modules.items() if v}
print(*vectors[0, :3])
"""


def settings(**values: object) -> EmbedderSettings:
    return EmbedderSettings.model_validate({"model_threads": 1, "device": "cpu", **values})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cache(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the model's converted form is."""
    folder = tmp_path_factory.mktemp("cache")
    prepare(settings(model=model, cache_dir=str(folder)))
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Prepares in this process, which has torch already; says which folders came of it."""
    folders: list[Path] = []

    def prepare_here(wanted: EmbedderSettings) -> Prepared:
        prepared = prepare(wanted)
        folders.append(prepared.folder)
        return prepared

    monkeypatch.setattr(engine, "prepare_elsewhere", prepare_here)
    return folders


def grey(loaded: Engine) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return loaded.backend.encode_images(np.full((1, 64, 64, 3), 128, np.uint8))


@pytest.mark.usefixtures("here")
def test_both_backends_serve_the_same_model(model: str, cache: Path) -> None:
    ours = load_engine(settings(model=model, cache_dir=str(cache), backend="openvino", precision="fp32"))
    theirs = load_engine(settings(model=model, backend="torch", precision="fp32"))
    assert (ours.spec.backend, theirs.spec.backend) == ("openvino", "torch")
    assert ours.spec.digest == theirs.spec.digest
    assert ours.spec.texts_cut is theirs.spec.texts_cut is True
    assert ours.spec.tokenizer == theirs.spec.tokenizer
    assert ours.spec.dimension == theirs.spec.dimension == 64
    assert ours.spec.best_batch == 16
    assert (ours.spec.geometry.width, ours.spec.geometry.height) == (64, 64)
    pixels = [probe_pixels(64, 64)]
    vectors = [[loaded.backend.encode_images(pixels[0])] for loaded in (ours, theirs)]
    assert least_cosine(*vectors) > 0.99999


@pytest.mark.usefixtures("here")
def test_a_cpu_gets_openvino_unasked(model: str, cache: Path) -> None:
    loaded = load_engine(settings(model=model, cache_dir=str(cache)))
    assert (loaded.spec.backend, loaded.spec.device) == ("openvino", "cpu")
    assert loaded.spec.precision in ("fp32", "bf16")


def test_a_second_start_neither_identifies_nor_converts(model: str, cache: Path, here: list[Path]) -> None:
    load_engine(settings(model=model, cache_dir=str(cache)))
    assert here == []


def test_a_start_after_a_file_was_touched_identifies_the_model_and_converts_nothing(
    model: str, cache: Path, here: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedder.backends.convert._convert", lambda *_: pytest.fail("converted again"))
    (Path(model.removeprefix("local-dir:")) / "open_clip_config.json").touch()
    load_engine(settings(model=model, cache_dir=str(cache)))
    assert [folder.parent for folder in here] == [cache]


def test_a_damaged_file_is_converted_again(model: str, tmp_path: Path, here: list[Path]) -> None:
    wanted = settings(model=model, cache_dir=str(tmp_path))
    expected = grey(load_engine(wanted))
    damaged = here[0] / "image.bin"
    content = bytearray(damaged.read_bytes())
    content[100] ^= 0xFF
    damaged.write_bytes(content)
    assert np.allclose(grey(load_engine(wanted)), expected, atol=1e-6)
    assert len(here) == 2  # the first start's, and the replacement of the damaged one
    assert damaged.read_bytes() != content


def test_a_process_of_its_own_prepares_and_says_what_it_refuses(model: str, cache: Path, tmp_path: Path) -> None:
    prepared = prepare_elsewhere(settings(model=model, cache_dir=str(cache)))
    assert (prepared.folder.parent, prepared.name) == (cache, model)
    with pytest.raises(LikenessError) as refused:
        prepare_elsewhere(settings(model=f"local-dir:{tmp_path}", cache_dir=str(cache)))
    assert refused.value.violations[0].field == "LIKENESS_MODEL"
    assert "cannot be loaded" in str(refused.value)


def test_a_preparation_that_is_killed_is_reported(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(LikenessError, match=r"ended with code -9.*more memory"):
        prepare_elsewhere(settings(model=model))


def test_a_converted_folder_serves_where_torch_cannot_be_imported(model: str, cache: Path) -> None:
    folder = next(path for path in cache.iterdir() if path.is_dir())
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    expected = grey(load_engine(settings(model=model, backend="torch", precision="fp32")))[0, :3]
    assert np.allclose([float(word) for word in run.stdout.split()[-3:]], expected, atol=1e-4)


def test_without_torch_any_other_model_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda _: None)
    with pytest.raises(LikenessError, match=r"starter needs torch .*openvino:<folder of a converted model>"):
        load_engine(settings(model="starter"))


def test_a_converted_folder_that_openvino_cannot_run_is_named(
    model: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("an unknown operation")

    folder = load_engine(settings(model=model, cache_dir=str(cache), backend="openvino")).spec.again
    monkeypatch.setattr("embedder.engine.open_converted", refuse)
    with pytest.raises(LikenessError, match=r"LIKENESS_MODEL.*does not run here: an unknown operation"):
        load_engine(settings(model=folder))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"pretrained": "openai"}, "brings its own weights"),
        ({"backend": "torch"}, "runs on openvino and the cpu"),
        ({"device": "cuda"}, "runs on openvino and the cpu"),
        ({"device": "auto"}, r"model\.json cannot be read"),
    ],
)
def test_a_converted_folder_is_refused_with_settings_that_contradict_it(
    values: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(LikenessError, match=reason):
        load_engine(settings(model=f"openvino:{tmp_path}", **values))


def _fails(error: Exception) -> Callable[[EmbedderSettings], Path]:
    def fail(_: EmbedderSettings) -> Path:
        raise error

    return fail


def test_the_same_weights_of_another_path_convert_nothing_and_go_by_the_name_they_are_asked_for_by(
    model: str, cache: Path, tmp_path: Path, here: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedder.backends.convert._convert", lambda *_: pytest.fail("converted again"))
    shutil.copytree(model.removeprefix("local-dir:"), tmp_path / "copy")
    copy = f"local-dir:{tmp_path / 'copy'}"
    for starts in ("the first", "the second, which need not identify it"):
        assert load_engine(settings(model=copy, cache_dir=str(cache))).spec.name == copy, starts
    assert len(here) == 1
    assert load_engine(settings(model=model, cache_dir=str(cache))).spec.name == model


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("call", ["glob", "exists"])  # of who looks for a note, and of who looks for a folder
def test_torch_takes_over_unasked_where_the_cache_may_not_be_looked_into(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    cache, unpatched = tmp_path / "cache", getattr(Path, call)

    def refuse(path: Path, *arguments: object) -> object:
        if path.is_relative_to(cache):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return unpatched(path, *arguments)

    cache.write_text("no folder: whatever gets past that is refused by the system")
    monkeypatch.setattr(Path, call, refuse)  # as of a user who may not; root always may
    assert load_engine(settings(model=model, cache_dir=str(cache))).spec.backend == "torch"
    with pytest.raises(LikenessError, match=r"LIKENESS_CACHE_DIR.*cannot be kept"):
        load_engine(settings(model=model, cache_dir=str(cache), backend="openvino"))


def test_a_place_in_the_home_of_nobody_is_named(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LeftOutError, match=r"LIKENESS_CACHE_DIR: ~nobody-at-all/cache: .*home"):
        cache_folder(settings(cache_dir="~nobody-at-all/cache"))
    with pytest.raises(LikenessError, match=r"LIKENESS_MODEL.*home"):
        load_engine(settings(model="openvino:~nobody-at-all/model"))


def test_torch_takes_over_unasked_what_openvino_cannot(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "prepare_elsewhere", _fails(LeftOutError("LIKENESS_BACKEND", "an unknown operation")))
    assert load_engine(settings(model=model)).spec.backend == "torch"
    with pytest.raises(LikenessError, match=r"LIKENESS_BACKEND.*an unknown operation"):
        load_engine(settings(model=model, backend="openvino"))


def test_a_model_that_is_not_there_is_no_reason_to_try_torch(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "prepare_elsewhere", _fails(invalid("LIKENESS_MODEL", "no such model")))
    with pytest.raises(LikenessError, match="no such model") as refused:
        load_engine(settings(model=model))
    assert refused.value.reason == error_pb2.REASON_FIELD_INVALID


def test_what_stands_in_the_way_of_a_conversion_is_named(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(LeftOutError, match="LIKENESS_CACHE_DIR: the converted model cannot be kept"):
        prepare(settings(model=model, cache_dir=str(tmp_path / "file")))

    def refuse(*_: object) -> None:
        raise ConversionError("an unknown operation")

    monkeypatch.setattr("embedder.backends.convert._convert", refuse)
    with pytest.raises(LeftOutError, match="LIKENESS_BACKEND: an unknown operation"):
        prepare(settings(model=model, cache_dir=str(tmp_path / "cache")))


def test_a_disk_that_is_full_is_the_caches_fault_and_not_the_backends(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_nothing(*_: object, **options: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")  # all that OpenVINO says of it

    monkeypatch.setattr("openvino.save_model", write_nothing)
    with pytest.raises(LeftOutError, match=r"LIKENESS_CACHE_DIR: .*cannot be kept: image.xml .*basic_ios::clear"):
        prepare(settings(model=model, cache_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("values", "device", "installed", "native", "chosen"),
    [
        ({}, "cpu", True, {"fp32"}, "openvino"),
        ({}, "cpu", False, (), "torch"),
        ({}, "cuda:0", True, (), "torch"),
        ({}, "mps", True, (), "torch"),
        ({"compile": True}, "cpu", True, EVERY, "torch"),
        ({"precision": "bf16"}, "cpu", True, EVERY, "openvino"),
        ({"precision": "int8"}, "cpu", True, EVERY, "openvino"),
        ({"precision": "bf16"}, "cpu", True, {"fp32"}, "torch"),
        ({"backend": "torch"}, "cpu", True, EVERY, "torch"),
        ({"backend": "openvino"}, "cpu", True, EVERY, "openvino"),
    ],
)
def test_the_backend_follows_from_device_and_settings(
    values: dict[str, object], device: str, installed: bool, native: set[str], chosen: str
) -> None:
    name, why = choose_backend(settings(**values), device, installed, native)
    assert name == chosen
    assert why


@pytest.mark.parametrize(
    ("values", "device", "installed", "reason"),
    [
        ({}, "cuda:0", True, "LIKENESS_BACKEND.*the device is cuda:0"),
        ({}, "cpu", False, "LIKENESS_BACKEND.*not installed"),
        ({"compile": True}, "cpu", True, "LIKENESS_COMPILE"),
        ({"precision": "bf16"}, "cpu", True, "LIKENESS_PRECISION.*not known to have instructions for bf16"),
        ({"precision": "fp16"}, "cpu", True, "LIKENESS_PRECISION.*not known to have instructions for fp16"),
    ],
)
def test_openvino_asked_for_by_name_is_refused_where_it_cannot_be(
    values: dict[str, object], device: str, installed: bool, reason: str
) -> None:
    with pytest.raises(LikenessError, match=reason):
        choose_backend(settings(backend="openvino", **values), device, installed, {"fp32"})


@pytest.mark.parametrize(
    ("values", "device", "installed", "reason"),
    [
        ({}, "cuda:0", True, "the device is cuda:0"),
        ({}, "cpu", False, "not installed"),
        ({}, "cpu", True, "not known to have instructions for int8"),
        ({"compile": True}, "cpu", True, r"torch\.compile is torch's"),
        ({"backend": "torch"}, "cpu", True, "torch is asked for"),
    ],
)
def test_8_bits_are_refused_where_openvino_cannot_be(
    values: dict[str, object], device: str, installed: bool, reason: str
) -> None:
    with pytest.raises(LikenessError, match=f"LIKENESS_PRECISION.*int8 is openvino's.*{reason}"):
        choose_backend(settings(precision="int8", **values), device, installed, {"fp32"})


def test_the_cache_is_where_the_settings_or_the_system_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder(settings(cache_dir=str(tmp_path))) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder(settings()) == Path("/somewhere/likeness")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder(settings()) == Path.home() / ".cache" / "likeness"
