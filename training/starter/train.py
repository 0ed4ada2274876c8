"""Trains the heads on the towers' features.

The loss is a sum of three cross-entropies over scaled cosines:

1. Captions. A picture and its caption find each other in a batch, both ways: InfoNCE (van den Oord et al. 2018), used
   as in CLIP (Radford et al. 2021). This makes scenes findable.
2. Classes. Every picture agrees with the texts of the 1,000 ImageNet classes as the image tower's own classifier does.
3. Examples. The example picture of a class finds that class's text. These two keep what the tower knew of things.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from embedder.starter.heads import HALF_DIM, ImageHead, TextHead
from training.starter.batches import Batch, Features, Settings, View, draw_batch


class Heads(nn.Module):
    """Both heads, and the logarithms of two scales: that of captions, which is kept, and that of classes."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.image = ImageHead(settings.image_input_dropout, settings.image_hidden_dropout)
        self.text = TextHead(settings.text_dropout)
        self.logit_scale = nn.Parameter(torch.tensor(25.0).log())
        self.class_logit_scale = nn.Parameter(torch.tensor(40.0).log())

    def kept(self) -> dict[str, Tensor]:
        """Everything that is trained and kept, by its name in the open_clip model."""
        image, text = self.image.state_dict(prefix="visual.head."), self.text.state_dict(prefix="text.proj.")
        trained = {name: tensor for name, tensor in (image | text).items() if ".classifier." not in name}
        return trained | {"logit_scale": self.logit_scale.detach()}


def train(features: Features, settings: Settings, report: Callable[[str], None]) -> Heads:
    """Trains the heads.

    Args:
        features: of the training data.
        settings: whatever else the outcome depends on.
        report: takes a line on how far it is, every five epochs.

    Returns:
        The running mean of the heads, in evaluation mode.
    """
    torch.manual_seed(settings.seed)
    heads = Heads(settings)
    heads.image.classifier.load_state_dict(features.classifier)
    heads.image.classifier.requires_grad_(False)
    start_from_class_names(heads, features)

    # The image MLP sees features of mean 0 and deviation 1; its first layer takes that over in the end. A deviation is
    # kept off 0, for the channels that hardly ever fire.
    seen = torch.cat([features.pictures[0], features.examples[0]])
    mean, deviation = seen.mean(dim=0), seen.std(dim=0) + 1e-2
    with torch.no_grad():
        pictures, examples = (
            [View(heads.image.classify(view), (view - mean) / deviation) for view in views]
            for views in (features.pictures, features.examples)
        )

    steps_an_epoch = len(features.captions) // settings.batch
    optimizer, schedule = optimization(heads, settings, settings.epochs * steps_an_epoch)
    averaged = AveragedModel(heads, avg_fn=lambda mean, value, count: mean.lerp(value, 1 - ema_decay(settings, count)))
    for epoch in range(settings.epochs):
        order = torch.randperm(len(features.captions))[: steps_an_epoch * settings.batch]
        for chosen in order.view(steps_an_epoch, settings.batch):
            optimizer.zero_grad()
            loss = batch_loss(heads, draw_batch(features, pictures, examples, chosen, settings), settings)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            averaged.update_parameters(heads)
        if epoch % 5 == 4:
            report(f"epoch {epoch + 1} of {settings.epochs}: loss {loss.item():.3f}")

    kept = averaged.module.eval()
    assert isinstance(kept, Heads)
    first_layer = kept.image.mlp[1]
    assert isinstance(first_layer, nn.Linear)
    with torch.no_grad():
        first_layer.weight.div_(deviation)
        first_layer.bias.sub_(first_layer.weight @ mean)
    return kept


@torch.no_grad()
def start_from_class_names(heads: Heads, features: Features) -> None:
    """Starts the first halves as ConSE: text is MiniLM cut to its main directions, a class is the mean of its texts.

    Those directions are the first right singular vectors of class texts and captions. A class is better met by the
    mean of many texts than by its one best name.
    """
    captions = features.captions[:2000].flatten(0, 1)
    some_texts = torch.cat([torch.cat(features.class_texts)[::7], captions])
    directions = torch.linalg.svd(functional.normalize(some_texts, dim=-1), full_matrices=False).Vh[:HALF_DIM]
    heads.text.linear.weight.copy_(directions)
    means = torch.stack([functional.normalize(texts, dim=-1).mean(dim=0) for texts in features.class_texts])
    heads.image.names.weight.copy_(directions @ functional.normalize(means, dim=-1).T)


def batch_loss(heads: Heads, batch: Batch, settings: Settings) -> Tensor:
    """The sum of the three losses over one batch."""
    count = len(batch.captions)
    images = heads.image.project(batch.shown.probabilities, batch.shown.features)
    texts = heads.text(torch.cat([batch.captions, batch.class_texts]))

    caption_logits = scale(heads.logit_scale) * images[:count] @ texts[:count].T
    own = torch.arange(count)
    caption_loss = (functional.cross_entropy(caption_logits, own) + functional.cross_entropy(caption_logits.T, own)) / 2

    class_logits = scale(heads.class_logit_scale) * images @ texts[count:].T
    class_loss = functional.cross_entropy(class_logits, batch.shown.probabilities)
    example_loss = functional.cross_entropy(
        class_logits[count:], batch.classes, label_smoothing=settings.examples_label_smoothing
    )
    return caption_loss + settings.classes_weight * class_loss + settings.examples_weight * example_loss


def optimization(
    heads: Heads, settings: Settings, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW (Loshchilov & Hutter 2019) with decay on matrices alone, and a short warm-up before a cosine to 0."""
    trained = [parameter for parameter in heads.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / settings.warm_up_steps) * 0.5 * (1 + math.cos(math.pi * step / steps))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def ema_decay(settings: Settings, step: Tensor | int) -> float:
    """The running mean's decay: lower in the first steps, so that it soon forgets where training began."""
    return min(settings.ema_decay, int(step) / (int(step) + 10))


def scale(logarithm: Tensor) -> Tensor:
    """A cosine's scale, at most 100 as in CLIP."""
    return logarithm.exp().clamp(max=100)
