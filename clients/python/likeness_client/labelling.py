"""What pictures are called: labels that fit, and labels that were changed."""

from dataclasses import dataclass

from likeness_client.errors import LikenessError
from likeness_client.items import Fingerprint


@dataclass(frozen=True)
class LabelScore:
    """How well a label fits a picture.

    Attributes:
        label: the label.
        probability: its share among all labels given, 0 to 1.
        similarity: the cosine of picture and label, −1 to 1, which the other labels do not change.
    """

    label: str
    probability: float
    similarity: float


@dataclass(frozen=True)
class Classification:
    """What one picture is.

    Attributes:
        labels: the most probable first; empty if it failed.
        error: why it failed, if it did.
    """

    labels: tuple[LabelScore, ...]
    error: LikenessError | None


@dataclass(frozen=True)
class ClassifyResult:
    """What the pictures are.

    Attributes:
        results: one for each, in their order.
        fingerprint: the model that compared them.
        scale: what cosines were multiplied by before the softmax.
    """

    results: tuple[Classification, ...]
    fingerprint: Fingerprint
    scale: float


@dataclass(frozen=True)
class LabelSuggestion:
    """Labels that fit a stored item, the most probable first."""

    id: str
    labels: tuple[LabelScore, ...]


@dataclass(frozen=True)
class LabelsUpdated:
    """What became of a change of labels.

    Attributes:
        updated: items whose labels were changed.
        unchanged: items that had them so already; for all items: or none of the labels that the change concerns.
        missing_ids: ids that do not exist, in the order given.
    """

    updated: int
    unchanged: int
    missing_ids: tuple[str, ...]
