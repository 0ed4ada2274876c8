"""Settings, and what one step of training sees: pictures in a view, captions and names of classes, drawn anew."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.starter.data import CAPTIONS_A_PICTURE
from training.starter.features import CENTRE, FLIP


@dataclass(frozen=True)
class Settings:
    """What training depends on besides the data; the values are those that did best on the development pictures.

    Attributes:
        views: a batch of pictures is shown in one of these, drawn at random.
        caption_mix: a caption is mixed with another of the same picture, up to this share.
        pair_mix: a picture and its caption are mixed with another pair, up to this share (mixup, Zhang et al. 2018).
        classes_weight: of the second loss.
        examples_weight: of the third loss.
        ema_decay: of the running mean of the weights, which is what is kept.
    """

    seed: int = 0
    epochs: int = 30
    batch: int = 512
    examples_a_batch: int = 256
    views: tuple[str, ...] = (CENTRE, FLIP, "crop-0")
    learning_rate: float = 2e-3
    warm_up_steps: int = 20
    weight_decay: float = 0.2
    image_input_dropout: float = 0.2
    image_hidden_dropout: float = 0.4
    text_dropout: float = 0.1
    caption_mix: float = 0.5
    pair_mix: float = 0.5
    classes_weight: float = 0.25
    examples_weight: float = 0.25
    examples_label_smoothing: float = 0.1
    ema_decay: float = 0.99


@dataclass(frozen=True)
class Features:
    """What the towers made of the training data.

    Attributes:
        pictures: captioned pictures by view, each float32 [n, IMAGE_FEATURE_DIM].
        captions: float32 [n, 5, TEXT_FEATURE_DIM].
        examples: one picture of each ImageNet class by view, each float32 [1000, IMAGE_FEATURE_DIM].
        class_texts: for each class the texts that name it, each float32 [number of texts, TEXT_FEATURE_DIM].
        classifier: the image tower's own ImageNet layer.
    """

    pictures: list[Tensor]
    captions: Tensor
    examples: list[Tensor]
    class_texts: list[Tensor]
    classifier: dict[str, Tensor]


@dataclass(frozen=True)
class View:
    """One view of some pictures, as the image head takes it in training: standardised, and classified once for all."""

    probabilities: Tensor
    features: Tensor

    def __getitem__(self, chosen: Tensor) -> "View":
        return View(self.probabilities[chosen], self.features[chosen])

    def __add__(self, after: "View") -> "View":
        return View(torch.cat([self.probabilities, after.probabilities]), torch.cat([self.features, after.features]))

    def lerp(self, other: "View", other_share: Tensor) -> "View":
        """This view mixed with the same number of others, which get the share [n, 1]."""
        return View(
            self.probabilities.lerp(other.probabilities, other_share), self.features.lerp(other.features, other_share)
        )


@dataclass(frozen=True)
class Batch:
    """One step's data.

    Attributes:
        shown: n captioned pictures, and after them the examples.
        captions: one a captioned picture, float32 [n, TEXT_FEATURE_DIM].
        classes: of the examples, int64 [m].
        class_texts: one a class, float32 [1000, TEXT_FEATURE_DIM].
    """

    shown: View
    captions: Tensor
    classes: Tensor
    class_texts: Tensor


def draw_batch(
    features: Features, pictures: list[View], examples: list[View], chosen: Tensor, settings: Settings
) -> Batch:
    """The chosen pictures and some examples, both in a random view, with random captions and class names."""
    classes = torch.randint(len(features.class_texts), (settings.examples_a_batch,))
    captions = mixed_captions(features.captions[chosen], settings.caption_mix)
    shown = pictures[draw(len(pictures))][chosen]
    other, other_share = torch.randperm(len(chosen)), torch.rand(len(chosen), 1) * settings.pair_mix
    return Batch(
        shown=shown.lerp(shown[other], other_share) + examples[draw(len(examples))][classes],
        captions=captions.lerp(captions[other], other_share),
        classes=classes,
        class_texts=torch.stack([texts[draw(len(texts))] for texts in features.class_texts]),
    )


def mixed_captions(captions: Tensor, most: float) -> Tensor:
    """One caption a picture, [n, dim] from [n, 5, dim], moved towards another one of its captions by a random share."""
    rows = torch.arange(len(captions))
    first, second = (captions[rows, torch.randint(CAPTIONS_A_PICTURE, (len(captions),))] for _ in range(2))
    return first.lerp(second, torch.rand(len(captions), 1) * most)


def draw(count: int) -> int:
    """A random index below count, from torch's generator, as every random choice here."""
    return int(torch.randint(count, ()))
