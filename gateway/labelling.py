"""Labels to choose from: their vectors, and how a picture's probabilities come from them."""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import EmbedLimits
from likeness.embedder.v1 import embedder_pb2
from likeness.gateway.v1 import gateway_pb2

from chassis import calls
from chassis.deadline import Deadline
from chassis.errors import LikenessError, in_request, invalid
from chassis.vectors import Array, from_proto
from gateway.backends import Embedder
from gateway.embedding import changed, embed
from gateway.explain import cosines
from gateway.metrics import Metrics

MAX_LABELS, MAX_TEMPLATES, MAX_BYTES, MAX_SCALE = 1000, 100, 1024, 10_000.0
DEFAULT_TEMPLATE = "a photo of a {}."

# By the model's name. CLIP models learn the scale in training, and end at its upper limit, 100. The starter was trained
# at 34; over 60 categories of photographs its probabilities are calibrated best at 50 (docs/retrieval.md).
_SCALES, _SCALE_OF_CLIP = {"starter": 50.0}, 100.0

# More texts than a search has wait behind interactive calls.
_INTERACTIVE_TEXTS = 64

# So many texts that are to be embedded count as one item of a key's rate: ViT-B/32 takes about as long for a picture.
TEXTS_AN_ITEM = 16


@dataclass(frozen=True)
class Labelling:
    """What to choose from.

    Attributes:
        labels: each another one.
        templates: the texts that stand for a label, with "{}" in its place.
        scale: what cosines are multiplied by; None: what suits the model.
    """

    labels: tuple[str, ...]
    templates: tuple[str, ...]
    scale: float | None

    @classmethod
    def of(cls, message: gateway_pb2.Labelling) -> Self:
        """What a request asks for.

        Raises:
            LikenessError: FIELD_INVALID or BATCH_TOO_LARGE.
        """
        labels, templates = tuple(message.labels), tuple(message.templates) or (DEFAULT_TEMPLATE,)
        if not labels:
            raise invalid("labelling.labels", f"is empty; expected 1 to {MAX_LABELS:,} labels")
        if len(labels) > MAX_LABELS:
            description = f"{len(labels)} labels; expected 1 to {MAX_LABELS:,}"
            raise invalid("labelling.labels", description, error_pb2.REASON_BATCH_TOO_LARGE)
        if len(templates) > MAX_TEMPLATES:
            description = f"{len(templates)} templates; at most {MAX_TEMPLATES} are taken"
            raise invalid("labelling.templates", description, error_pb2.REASON_BATCH_TOO_LARGE)
        _check_texts(labels, "labelling.labels")
        _check_texts(templates, "labelling.templates")
        for i, template in enumerate(templates):
            if "{}" not in template:
                raise invalid(f"labelling.templates[{i}]", f"{template[:200]!r}; expected {{}} where the label goes")
        scale = message.scale if message.HasField("scale") else None
        if scale is not None and not (math.isfinite(scale) and 0 < scale <= MAX_SCALE):
            raise invalid("labelling.scale", f"{scale:g}; expected above 0 and at most {MAX_SCALE:g}")
        return cls(labels, templates, scale)

    def scale_for(self, model: str) -> float:
        """What cosines are multiplied by, with vectors of the model of this name."""
        return _SCALES.get(model, _SCALE_OF_CLIP) if self.scale is None else self.scale

    def texts(self, label: str) -> list[str]:
        """The texts that stand for a label."""
        return [template.replace("{}", label) for template in self.templates]

    def identities(self, digest: str) -> list[bytes]:
        """A hash for each label, of it, the templates and the model of this digest: the same for the same vector."""
        common = hashlib.blake2b(digest_size=16)
        for text in (digest, *self.templates):
            encoded = text.encode()
            common.update(len(encoded).to_bytes(4) + encoded)
        found = []
        for label in self.labels:
            its_own = common.copy()
            its_own.update(label.encode())
            found.append(its_own.digest())
        return found


class LabelVectors:
    """The vectors of labels; those used lately are remembered, as many as ``size``."""

    def __init__(self, embedder: Embedder, size: int, metrics: Metrics) -> None:
        self._embedder = embedder
        self._size = size
        self._metrics = metrics
        # By a hash: the templates alone may be 100 KiB.
        self._known: OrderedDict[bytes, Array] = OrderedDict()

    async def of(
        self, labelling: Labelling, model: embedder_pb2.GetModelResponse, deadline: Deadline, *, taken: int
    ) -> Array:
        """The labels' vectors, float32 [labels, dimension], L2-normalised.

        What is found is remembered as it comes: a call that ran out of time is done sooner when it is repeated.

        Args:
            labelling: the labels.
            model: the embedder's.
            deadline: by when.
            taken: items of its key's rate that the call has taken already; the texts to be embedded are some more.

        Raises:
            LikenessError: a text is refused, the embedder cannot be reached, (MODEL_MISMATCH) has another model now, or
                (RATE_LIMITED) the key's rate is used up.
        """
        digest = model.fingerprint.digest
        keys = labelling.identities(digest)
        found = [self._recall(key) for key in keys]
        missing = [i for i, vector in enumerate(found) if vector is None]
        self._metrics.cache_hit("label", len(found) - len(missing))
        self._metrics.cache_missed("label", len(missing))
        texts = len(missing) * len(labelling.templates)
        if texts:
            calls.allowance().charge(taken + math.ceil(texts / TEXTS_AN_ITEM), taken=taken)
        background = texts > _INTERACTIVE_TEXTS
        step = max(1, model.limits.max_inputs // len(labelling.templates))
        for start in range(0, len(missing), step):
            run = missing[start : start + step]
            vectors = await self._embed(labelling, run, digest, model.limits, deadline, background=background)
            for i, vector in zip(run, vectors, strict=True):
                found[i] = vector
                self._remember(keys[i], vector)
        return np.stack([vector for vector in found if vector is not None])

    async def _embed(
        self,
        labelling: Labelling,
        run: Sequence[int],
        digest: str,
        limits: EmbedLimits,
        deadline: Deadline,
        *,
        background: bool,
    ) -> list[Array]:
        each = len(labelling.templates)
        inputs = [embedder_pb2.EmbedInput(text=text) for i in run for text in labelling.texts(labelling.labels[i])]
        embedded = await embed(self._embedder, inputs, deadline, limits, background=background)
        if embedded.fingerprint.digest != digest:
            raise changed()
        vectors: list[Array] = []
        for place, outcome in enumerate(embedded.outcomes):
            if isinstance(outcome, LikenessError):
                field = f"labelling.labels[{run[place // each]}]"
                raise in_request(outcome, lambda _, field=field: field)  # type: ignore[misc]
            vectors.append(from_proto(outcome, "vector"))
        return [_mean(np.stack(vectors[i : i + each])) for i in range(0, len(vectors), each)]

    def _recall(self, key: bytes) -> Array | None:
        vector = self._known.get(key)
        if vector is not None:
            self._known.move_to_end(key)
        return vector

    def _remember(self, key: bytes, vector: Array) -> None:
        self._known[key] = vector
        self._known.move_to_end(key)
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        self._metrics.cache_size("label", len(self._known))


@dataclass(frozen=True)
class Chooser:
    """Chooses labels for pictures.

    Attributes:
        labels: what to choose from.
        vectors: of the labels, float32 [labels, dimension].
        scale: what cosines are multiplied by.
    """

    labels: Sequence[str]
    vectors: Array
    scale: float

    def __call__(self, pictures: Array, top_k: int, least: float = 0.0) -> list[list[gateway_pb2.LabelScore]]:
        """The most probable labels of each picture, the best first, equal ones in the order of the labels.

        Args:
            pictures: vectors, float32 [n, dimension].
            top_k: most labels for each.
            least: the smallest probability that is given.
        """
        similarities = cosines(pictures, self.vectors)
        probabilities = softmax(similarities, self.scale)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        return [
            [
                gateway_pb2.LabelScore(label=self.labels[j], probability=probable[j], similarity=alike[j])
                for j in best
                if probable[j] >= least
            ]
            for best, probable, alike in zip(order, probabilities, similarities, strict=True)
        ]


def softmax(similarities: Array, scale: float) -> npt.NDArray[np.float64]:
    """Probabilities, float64 [n, labels], of which each row adds up to 1."""
    logits = scale * similarities.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found


def _mean(vectors: Array) -> Array:
    """The direction of the mean of L2-normalised vectors, as CLIP's prompt ensembles are made (Radford et al. 2021)."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(mean)
    direction: Array = (mean / length if length else mean).astype(np.float32)
    return direction


def _check_texts(texts: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for i, text in enumerate(texts):
        if not 0 < len(text.encode()) <= MAX_BYTES:
            raise invalid(f"{where}[{i}]", f"{len(text.encode())} bytes; expected 1 to {MAX_BYTES:,}")
        if text in seen:
            raise invalid(f"{where}[{i}]", f"{text[:200]!r} again; expected each once")
        seen.add(text)
