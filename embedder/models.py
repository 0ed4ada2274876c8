"""Finds and loads a model: built in, by open_clip's name and tag or checkpoint file, from a folder or from a hub.

A model is what was asked for or an error that says what to do; there is no second choice. Checkpoints are read with
``weights_only=True``: a file that would run code is refused. So is a configuration that would have its tokenizer's
library run code.
"""

import contextlib
import difflib
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import open_clip
import torch
from PIL import Image

from chassis.errors import LikenessError, invalid

Triple = tuple[torch.nn.Module, Callable[[Image.Image], torch.Tensor], Any]

_MODEL, _PRETRAINED, _LIKE = "LIKENESS_MODEL", "LIKENESS_PRETRAINED", "LIKENESS_PREPROCESS_LIKE"

# What open_clip's tokenizers take for themselves of a configuration's ``tokenizer_kwargs``. All else goes on to a
# library that can be told so to run the model's own code (``trust_remote_code``). Its text tower and timm's pictures'
# tower are given names alone; without that word, transformers refuses what brings code, and no weights but open_clip's
# checkpoint are read.
_TOKENIZER_OPTIONS = {"additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token"}


@dataclass(frozen=True)
class LoadedModel:
    """A model on the CPU, in float32 and evaluation mode.

    Attributes:
        name: for people, such as "starter" or "ViT-B-32/laion2b_s34b_b79k".
        network: open_clip's model, with ``encode_image`` and ``encode_text``.
        transform: its validation transform, from a picture to float32 [3, height, width].
        tokenizer: its tokenizer.
        preprocess: open_clip's configuration behind ``transform``.
        architecture: what the network is besides its weights, for the fingerprint.
    """

    name: str
    network: torch.nn.Module
    transform: Callable[[Image.Image], torch.Tensor]
    tokenizer: Any
    preprocess: Mapping[str, Any]
    architecture: Mapping[str, Any]


@dataclass(frozen=True)
class Builtin:
    """A model that comes with this project.

    Attributes:
        load: gives what open_clip gives for any model: network, validation transform, tokenizer. Raises RuntimeError
            with a message for people.
        revision: raised when the network computes something else from the same weights.
    """

    load: Callable[[], Triple]
    revision: int


def _starter() -> Triple:
    from embedder.starter import load_starter  # noqa: PLC0415 (its towers' libraries are needed by no other model)

    return load_starter()


BUILTIN: dict[str, Builtin] = {"starter": Builtin(_starter, revision=1)}


def load(model: str, pretrained: str, preprocess_like: str = "") -> LoadedModel:
    """Loads a model.

    Args:
        model: a name in ``BUILTIN``, a name of open_clip, ``hf-hub:…`` or ``local-dir:…``.
        pretrained: for a name of open_clip: its tag, or a checkpoint file's path; for all others empty.
        preprocess_like: for a checkpoint file: the tag with whose preprocessing and activation function it was trained.
            Needed where the tags of that name differ in either, or none has the activation function of that name.

    Raises:
        LikenessError: there is no such model, its weights cannot be had, or they do not fit.
    """
    if model in BUILTIN or ":" in model:
        if pretrained:
            raise invalid(_PRETRAINED, f"{pretrained!r} is set, but {model} brings its own weights; leave it empty")
        return _load_builtin(model) if model in BUILTIN else _load_open_clip(model, None, model)
    name = model.replace("/", "-")
    if name not in open_clip.list_models():
        known = [*BUILTIN, *open_clip.list_models()]
        raise invalid(_MODEL, f"{model!r} is no model that is built in or known to open_clip.{_nearest(name, known)}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    known_tag = next((t for t in tags if t == pretrained.lower().replace("-", "_") or t == pretrained), None)
    if known_tag:
        _check_activation(name, known_tag, _PRETRAINED)
        return _load_open_clip(name, known_tag, f"{name}/{known_tag}")
    if pretrained and _is_file(pretrained):
        preprocessing = _preprocessing_of_a_file(name, tags, preprocess_like)
        return _load_open_clip(name, pretrained, f"{name}/{Path(pretrained).name}", preprocessing)
    what = (
        f"{pretrained!r} is neither a file nor one of {name}'s tags" if pretrained else f"not set, but {name} needs it"
    )
    offer = f"open_clip's tags for {name}: {', '.join(tags)}." if tags else f"open_clip has no weights for {name}."
    raise invalid(_PRETRAINED, f"{what}. {offer} Or give the path of a checkpoint file.{_nearest(pretrained, tags)}")


def _load_builtin(name: str) -> LoadedModel:
    try:
        network, transform, tokenizer = BUILTIN[name].load()
    except RuntimeError as error:
        raise invalid(_MODEL, f"{name} cannot be loaded: {error}") from error
    architecture = {"builtin": name, "revision": BUILTIN[name].revision}
    return _loaded(name, network, transform, tokenizer, architecture)


def _is_file(pretrained: str) -> bool:
    try:
        return Path(pretrained).is_file()
    except OSError as error:  # it is in a folder that may not be looked into
        raise invalid(_PRETRAINED, f"{pretrained} cannot be read: {error}") from error


def _preprocessing_of_a_file(name: str, tags: Sequence[str], like: str) -> dict[str, Any]:
    """How a checkpoint file wants its pictures.

    The file itself says neither that nor its activation function; open_clip would assume a default, and the name's.
    """
    if like:
        if like not in tags:
            raise invalid(_LIKE, f"{like!r} is none of {name}'s tags: {', '.join(tags)}.{_nearest(like, list(tags))}")
        _check_activation(name, like, _LIKE)
        return _preprocessing(name, like)
    siblings = {tag: _sibling(name, tag) for tag in tags}
    kinds = [_preprocessing(name, tag) for tag in tags]
    if all(kind == kinds[0] for kind in kinds) and not any(siblings.values()):
        return kinds[0] if kinds else {}
    choice = []
    for model in sorted(set(siblings.values())):
        of_model = ", ".join(tag for tag in tags if siblings[tag] == model)
        choice.append(f"together with {_MODEL}={model}: {of_model}" if model else of_model)
    raise invalid(
        _LIKE,
        f"is not set, but {name}'s checkpoints were trained with different preprocessing or activation functions, and "
        f"a file does not say which are its own. Set it to the tag that the file is, or was fine-tuned from: "
        f"{'; '.join(choice)}. If it is like none of them, put it into a folder with an open_clip_config.json, which "
        f"says both, and set {_MODEL}=local-dir:<folder>",
    )


def _preprocessing(name: str, tag: str) -> dict[str, Any]:
    stated = open_clip.get_pretrained_cfg(name, tag)
    defaults = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    return {f"image_{key}": stated.get(key, default) for key, default in defaults.items()}


def _load_open_clip(
    model: str, pretrained: str | None, shown: str, preprocessing: Mapping[str, Any] = MappingProxyType({})
) -> LoadedModel:
    try:
        with _without_chatter():
            architecture = open_clip.get_model_config(model)
            _check_tokenizer_options(model, architecture)
            network, transform = open_clip.create_model_from_pretrained(
                model, pretrained=pretrained, weights_only=True, **preprocessing
            )
            tokenizer = open_clip.get_tokenizer(model)
    except LikenessError:
        raise
    except Exception as error:  # open_clip, torch, safetensors and the hub have no error class in common
        raise _explain(error, model, pretrained) from error
    return _loaded(shown, network, transform, tokenizer, architecture)


def _loaded(
    name: str,
    network: Any,
    transform: Callable[[Image.Image], torch.Tensor],
    tokenizer: Any,
    architecture: Mapping[str, Any],
) -> LoadedModel:
    network = network.eval().requires_grad_(False)
    return LoadedModel(name, network, transform, tokenizer, network.visual.preprocess_cfg, architecture)


def _check_tokenizer_options(model: str, architecture: Any) -> None:
    """Refuses options of a tokenizer that are not known to run no code. What is no configuration, open_clip refuses."""
    texts = architecture.get("text_cfg") if isinstance(architecture, dict) else None
    options = texts.get("tokenizer_kwargs") if isinstance(texts, dict) else None
    unknown = sorted(set(options or {}) - _TOKENIZER_OPTIONS)
    if unknown:
        raise invalid(
            _MODEL,
            f"{model}: the tokenizer_kwargs of its configuration hold {', '.join(unknown)}, which may run code that "
            f"comes with the model, and is refused; known: {', '.join(sorted(_TOKENIZER_OPTIONS))}",
        )


def _check_activation(name: str, tag: str, field: str) -> None:
    """open_clip only warns where a tag was trained with another activation; its vectors would be quietly wrong."""
    sibling = _sibling(name, tag)
    if sibling:
        offer = f"; set {_MODEL}={sibling}" if sibling in open_clip.list_models() else ""
        raise invalid(field, f"{tag!r} was trained with another activation function than {name} has{offer}")


def _sibling(name: str, tag: str) -> str:
    """The name under which open_clip builds a tag with its own activation function; empty if it is this one."""
    trained = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    built = bool((open_clip.get_model_config(name) or {}).get("quick_gelu", False))
    sibling = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
    # Of a few, open_clip's list of tags leaves out what the architecture says.
    return sibling if trained != built and sibling != name else ""


def _explain(error: Exception, model: str, pretrained: str | None) -> LikenessError:
    where = _PRETRAINED if pretrained else _MODEL
    cause = str(error).strip()[:600] or type(error).__name__
    if pretrained and Path(pretrained).is_file():
        unsafe = isinstance(error, pickle.UnpicklingError) or "weights_only" in cause
        if unsafe:
            advice = (
                "it is no plain checkpoint: reading it would run code from the file, which is refused. Save the "
                "state_dict alone, best as .safetensors"
            )
        else:
            advice = f"it does not fit {model} or cannot be read ({cause}). Check that model and file belong together"
        return invalid(where, f"{pretrained}: {advice}.")
    if model.startswith("local-dir:"):
        return invalid(where, f"{model} cannot be loaded ({cause}).")
    return invalid(
        where,
        f"the files of {' '.join(filter(None, (model, pretrained)))} are not in the cache and could not be downloaded "
        f"({cause}). Give this machine access to the hub for one start, copy a filled cache to it (HF_HOME), or "
        "download the checkpoint elsewhere and set LIKENESS_PRETRAINED to its path.",
    )


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Mutes what open_clip writes to the root logger itself; other loggers' lines do not pass a filter there."""
    root = logging.getLogger()
    root.addFilter(_is_warning)
    try:
        yield
    finally:
        root.removeFilter(_is_warning)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _nearest(wrong: str, known: list[str]) -> str:
    folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(wrong.lower(), folded, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(folded[n] for n in near)}?" if near else ""
