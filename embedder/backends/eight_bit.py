"""Matrix products of 8-bit integers, for a converted model on OpenVINO.

A weight w becomes the integer q = round(w / s), from -127 to 127. The scale s = max |w| / 127 is that of its group: so
many inputs of one output, one after another. What comes in is rounded likewise by OpenVINO at every product, in the
same groups, each with a scale of its own ("dynamic quantization"). So nothing has to be calibrated, one large value
spoils its own group only, and a vector depends on nothing else in its batch. All else stays in float32: attention,
normalisation, convolutions, and products whose inputs are no multiple of a group.

A CPU multiplies 8-bit integers at once with its VNNI instructions; without them nothing is gained.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Inputs in a group, by tower. ViT-B-32, random weights, two cores with AVX-512 VNNI, beside float32: pictures in groups
# of 64 are 2.2 to 2.5 times as fast, at a cosine of 0.99992 to its vectors, in groups of 32 1.9 times, at 0.99994.
# Texts of 10 words 2.2 times, at 0.9995, or 1.7 to 1.9, at 0.9996. Of starter's texts, whose weights are trained, 300
# captions had 0.9991 at least in groups of 64 and 0.9995 in groups of 32.
GROUP = {"image": 64, "text": 32}

# So many weights in products the pictures' tower must have for the start to try it, which takes a second or more: ViT-S
# has 21 million, ViT-B 85. They have to be most of that tower besides: a convolutional one gains nothing.
_WORTH_TRYING = 2**24


def quantise(model: Any, group: int) -> None:
    """Turns the weights of an ``openvino.Model``'s matrix products into 8-bit integers, in place.

    Args:
        model: as read from a converted model's ``.xml``.
        group: inputs that share a scale. A product whose inputs are no multiple of it stays as it is.
    """
    from openvino import opset13  # noqa: PLC0415 (in most processes nobody needs it)

    for product, weights in _products(model, group):
        outputs, inputs = weights.shape
        grouped = weights.reshape(outputs, inputs // group, group)
        scales = np.abs(grouped).max(axis=2, keepdims=True) / np.float32(127)
        scales[scales == 0] = 1
        integers = np.rint(grouped / scales).astype(np.int8)
        factors = opset13.multiply(opset13.convert(opset13.constant(integers), "f32"), opset13.constant(scales))
        shape = opset13.constant(np.array([outputs, inputs], np.int64))
        product.input(1).replace_source_output(opset13.reshape(factors, shape, special_zero=False).output(0))


def is_worth_trying(model: Any, file: Path) -> bool:
    """Whether most of the pictures' tower is matrix products, and many.

    Args:
        model: as ``quantise`` takes it.
        file: the tower's weights.
    """
    count = sum(int(weights.size) for _, weights in _products(model, GROUP["image"]))
    return count >= _WORTH_TRYING and count * 4 * 2 >= file.stat().st_size


def _products(model: Any, group: int) -> Iterator[tuple[Any, Any]]:
    """Each product with a matrix of weights that divides into groups, and that: float32 [outputs, inputs]."""
    for node in model.get_ops():
        if node.get_type_name() != "MatMul":
            continue
        source, attributes = node.input_value(1).get_node(), node.get_attributes()
        if source.get_type_name() != "Constant" or attributes["transpose_a"] or not attributes["transpose_b"]:
            continue
        weights = source.get_data()
        if weights.ndim == 2 and weights.dtype == np.float32 and weights.shape[1] % group == 0:
            yield node, weights
