"""The heads that this project trained: what stands behind each frozen tower, and the file that keeps it."""

import hashlib
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.starter.towers import EMBED_DIM, IMAGE_FEATURE_DIM, TEXT_FEATURE_DIM, TOP_FEATURE_DIM, StarterModelError

HEADS_FILE = Path(__file__).with_name("heads.safetensors")
HEADS_FORMAT = "likeness-starter-heads-1"

HALF_DIM = EMBED_DIM // 2
IMAGENET_CLASSES = 1000
IMAGE_HIDDEN_DIM = 800
TEXT_HIDDEN_DIM = 448


class ImageHead(nn.Module):
    """Projects a picture's pooled features to the joint space: two halves of equal length.

    The first half is ConSE (Norouzi et al. 2013): the tower's own ImageNet probabilities times one vector a class, so
    it knows what things are called. The second is an MLP trained on captions in front of frozen towers, as in LiT (Zhai
    et al. 2021), so it knows scenes. The cosine of two vectors is the mean of the halves' cosines.
    """

    def __init__(self, input_dropout: float = 0.0, hidden_dropout: float = 0.0) -> None:
        super().__init__()
        self.classifier = nn.Linear(TOP_FEATURE_DIM, IMAGENET_CLASSES)  # the tower's own, never trained here
        self.names = nn.Linear(IMAGENET_CLASSES, HALF_DIM, bias=False)
        self.mlp = nn.Sequential(
            nn.Dropout(input_dropout),
            nn.Linear(IMAGE_FEATURE_DIM, IMAGE_HIDDEN_DIM),
            nn.GELU(),
            nn.Dropout(hidden_dropout),
            nn.Linear(IMAGE_HIDDEN_DIM, HALF_DIM, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Turns features, float [n, 1792], into vectors, float [n, 512], L2-normalised."""
        return self.project(self.classify(features), features)

    def classify(self, features: Tensor) -> Tensor:
        """The tower's ImageNet probabilities, float [n, 1000], from its features, float [n, 1792]."""
        probabilities: Tensor = self.classifier(features[:, :TOP_FEATURE_DIM]).softmax(dim=-1)
        return probabilities

    def project(self, probabilities: Tensor, features: Tensor) -> Tensor:
        """The vectors, float [n, 512], that probabilities and features give; training computes the former once."""
        return join_halves(self.names(probabilities), self.mlp(features))


class TextHead(nn.Module):
    """Projects a text's pooled feature to the joint space: a linear half that meets ConSE, and an MLP half."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(TEXT_FEATURE_DIM, HALF_DIM, bias=False)
        self.mlp = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(TEXT_FEATURE_DIM, TEXT_HIDDEN_DIM, bias=False),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(TEXT_HIDDEN_DIM, HALF_DIM, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Turns features, float [n, 384], into vectors, float [n, 512], L2-normalised."""
        return join_halves(self.linear(features), self.mlp(features))


def join_halves(first: Tensor, second: Tensor) -> Tensor:
    """Joins two [n, 256] halves into [n, 512] vectors of unit length in which both halves weigh the same."""
    halves = [functional.normalize(half, dim=-1) for half in (first, second)]
    return torch.cat(halves, dim=-1).mul(0.5**0.5)


def save_heads(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes trained heads, as float16, in the form that ``load_starter`` reads.

    Args:
        path: where to; an existing file is replaced.
        tensors: by their names in the open_clip model; the names and shapes of ``head_shapes()``.
    """
    stored = {name: tensor.detach().half().contiguous() for name, tensor in sorted(tensors.items())}
    metadata = {"format": HEADS_FORMAT, "sha256": heads_digest(stored)}
    path.write_bytes(safetensors.torch.save(stored, metadata))


def read_heads(path: Path) -> dict[str, Tensor]:
    """Reads trained heads as float32, by their names in the open_clip model.

    Raises:
        StarterModelError: the file is missing, is no heads file, is damaged, or fits another shape of head.
    """
    remedy = "Restore the file from the repository, or train it anew: docs/starter-model.md says how."
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, safetensors.SafetensorError) as error:
        raise StarterModelError(
            f"{path} cannot be read as heads: {error}. Expected: a safetensors file. {remedy}"
        ) from error
    shapes, wanted = {name: tuple(tensor.shape) for name, tensor in stored.items()}, head_shapes()
    if metadata.get("format") != HEADS_FORMAT or shapes != wanted:
        raise StarterModelError(
            f"{path} holds heads of format {metadata.get('format')!r} with tensors {shapes}. "
            f"Expected: format {HEADS_FORMAT!r} with tensors {wanted}. {remedy}"
        )
    found = heads_digest(stored)
    if metadata.get("sha256") != found:
        raise StarterModelError(
            f"{path} is damaged: its tensors have SHA-256 {found}. Expected: {metadata.get('sha256')}, as the file "
            f"itself says. {remedy}"
        )
    return {name: tensor.float() for name, tensor in stored.items()}


def head_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all that is trained here: both heads but for the tower's classifier, and logit_scale."""
    with torch.device("meta"):
        image, text = ImageHead().state_dict(prefix="visual.head."), TextHead().state_dict(prefix="text.proj.")
    shapes = {name: tuple(tensor.shape) for name, tensor in (image | text).items() if ".classifier." not in name}
    return shapes | {"logit_scale": ()}


def heads_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the tensors' names and bytes: tells a damaged file, whatever its name and whoever trained it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
