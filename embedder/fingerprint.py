"""The model's identity: one digest over everything that shapes a vector.

Each part is hashed under its name with its length, in a form that depends on neither the machine nor the version of the
libraries. Device and precision are left out: what they change is rounding. How much, the start checks on a few probes
(``backends.probes``); a precision that is asked for by name is served, with a warning, also where it changes more.

Cost, CPU time on a processor without SHA instructions: starter (118 MB) 0.8 s, ViT-B-32 (605 MB) 3.0 s, shared by the
cores.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg
from open_clip.utils import to_2tuple

from chassis.cores import cores
from embedder.decode import DECODE_RULES

# What cleaning, splitting and special tokens do to these shows in their ids. Libraries rename and extend the
# configuration that says so; the ids stay.
_PROBES = (
    "",
    "a photo of a cat.",
    "Two DOGS, running!",
    "naïve café – coöperation",
    "it's  we'll\tthey've\n",
    "&lt;b&gt; &amp; <end_of_text> [SEP] </s>",
    "ﬁne ½ … “quotes”",
    "1234567890 3.14 0xFF",
    "日本語 русский العربية हिन्दी",
    "🐕‍🦺🚀",
    "snake_case CamelCase kebab-case",
    "supercalifragilisticexpialidocious",
    " ".join(f"word {n}" for n in range(200)),  # which end is cut off
)

_SHAPES_NO_VECTOR = {
    *("patch_dropout", "timm_drop", "timm_drop_path"),
    *("timm_model_pretrained", "hf_model_pretrained"),
    *("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"),
    *("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"),
    *("custom_text", "multimodal_cfg"),  # the weights' names and shapes say as much
}
# Such weights, by their whole names; what counts batches in training, and CoCa's decoder, which writes captions, make
# none either. Other weights of that name do: Swin V2 has them in its attention.
_WEIGHS_NO_VECTOR = {"logit_scale", "logit_bias"}


def fingerprint(
    network: torch.nn.Module, tokenizer: Any, preprocess: Mapping[str, Any], architecture: Mapping[str, Any]
) -> str:
    """Hashes a model as loaded, before any change of device or precision.

    Args:
        network: its parameters and buffers in float32 (integer buffers as they are).
        tokenizer: one of open_clip's.
        preprocess: open_clip's ``preprocess_cfg``.
        architecture: what the network is besides its weights, as plain values.

    Returns:
        64 lower-case hexadecimal digits.
    """
    digest = hashlib.sha256(b"likeness model 3\n")
    _add_json(digest, "architecture", _architecture(architecture))
    _add_json(digest, "preprocess", _preprocess(preprocess) | {"decode_rules": DECODE_RULES})
    _add_json(digest, "normalisation", "l2")
    _add_json(digest, "tokenizer", _tokenizer(tokenizer))
    # Each weight's own digest goes in, so that threads can make them side by side; hashlib lets the GIL go.
    # CustomTextCLIP, which open_clip builds where a configuration so much as mentions hf_model_name, calls the same
    # weights by other names than CLIP.
    weights = sorted(
        (
            (name.removeprefix("text."), tensor)
            for name, tensor in network.state_dict().items()
            if name not in _WEIGHS_NO_VECTOR
            and not name.endswith(".num_batches_tracked")
            and not name.startswith("text_decoder.")
        ),
        key=lambda weight: weight[0],
    )
    with ThreadPoolExecutor(min(8, cores())) as threads:
        for line in threads.map(_weight, *zip(*weights, strict=True)):
            _add(digest, "weight", memoryview(line.encode()))
    return digest.hexdigest()


def _architecture(stated: Mapping[str, Any]) -> dict[str, Any]:
    """An architecture with its defaults spelt out: configurations differ in which of them they state.

    Left out is what shapes no vector by itself: how weights were begun with or dropped in training, and the tokenizer's
    name, since its content is hashed.
    """
    whole = dict(stated)
    for tower, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        if isinstance(whole.get(tower), Mapping):
            whole[tower] = {k: v for k, v in asdict(kind(**whole[tower])).items() if k not in _SHAPES_NO_VECTOR}
    if "vision_cfg" in whole:
        whole = {k: v for k, v in whole.items() if k not in _SHAPES_NO_VECTOR}
        whole["quick_gelu"] = bool(whole.get("quick_gelu", False))
        whole["vision_cfg"]["image_size"] = list(to_2tuple(whole["vision_cfg"]["image_size"]))
    return whole


def _preprocess(stated: Mapping[str, Any]) -> dict[str, Any]:
    whole = asdict(PreprocessCfg(**stated))
    floats = {name: [float(each) for each in whole[name]] for name in ("mean", "std")}
    return whole | floats | {"size": list(to_2tuple(whole["size"]))}


def _weight(name: str, tensor: torch.Tensor) -> str:
    values = tensor.detach().cpu()
    array = np.ascontiguousarray((values.float() if values.is_floating_point() else values).numpy())
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    content = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
    return f"{name} {array.dtype.name} {list(tensor.shape)} {content}"


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"context_length": tokenizer.context_length, "probes": tokenizer(_PROBES).tolist()}
    if isinstance(tokenizer, SimpleTokenizer):
        return content | {"vocabulary": tokenizer.encoder, "merges": [" ".join(m) for m in tokenizer.bpe_ranks]}
    inner = tokenizer.tokenizer
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None:
        return content | {"vocabulary": inner.get_vocab()}
    model = json.loads(backend.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    return content | {"vocabulary": model["vocab"], "merges": merges, "added": inner.get_added_vocab()}


def _add_json(digest: "hashlib._Hash", name: str, value: Any) -> None:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    _add(digest, name, memoryview(text.encode()))


def _add(digest: "hashlib._Hash", name: str, content: memoryview) -> None:
    digest.update(f"{name} {content.nbytes}\n".encode())
    digest.update(content)
