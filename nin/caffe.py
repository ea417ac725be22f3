"""The authors' own CIFAR-10 net, read from Caffe's file without Caffe.

The file is a protocol buffer, of which five kinds of fields are needed: the layers of a net (2), a layer's name (4) and
blobs (6), a blob's four sides (1 to 4) and its floats (5). Nothing of it is executed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

SUFFIX = ".caffemodel"
MAX_BYTES = 2**26  # sixteen times the authors' file
# their Caffe release averages before block 3, where the first release has the maximum
NET = {"blocks": "cifar10", "last_pool": "average", "num_classes": 10, "head": "gap", "image_size": 32}
FACTS = {"data": "cifar10", "recipe": "paper_caffe", "source": "the authors' Caffe release; licence unknown"}
LAYERS = tuple((block, number) for block in (1, 2, 3) for number in (1, 2, 3))  # their convolutions, in order
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # how a field is written


def read(content: bytes) -> dict[str, Tensor]:
    """The weights of the authors' net, by their names in `nin.NIN`.

    Args:
        content: of `cifar10_nin.caffemodel`, the CIFAR-10 net of Caffe's model zoo.

    Raises:
        ValueError: it is not a protocol buffer, or does not contain nine convolutions with weights and biases.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES:,} bytes, got {len(content):,}")
    convolutions = []
    for number, layer in fields(memoryview(content)):
        if number == 2 and isinstance(layer, memoryview):
            blobs = [blob for kind, blob in fields(layer) if kind == 6]
            if blobs:
                convolutions.append([_blob(blob) for blob in blobs])
    if len(convolutions) != len(LAYERS) or any(len(blobs) != 2 for blobs in convolutions):
        raise ValueError(f"expected {len(LAYERS)} layers with weights and biases, got {len(convolutions)} with weights")
    tensors = {}
    for (block, number), (weight, bias) in zip(LAYERS, convolutions, strict=True):
        tensors[f"blocks.block{block}.conv{number}.weight"] = weight
        tensors[f"blocks.block{block}.conv{number}.bias"] = bias.flatten()
    return tensors


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protocol buffer's message. Raises ValueError where it is damaged."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (FOUR_BYTES, EIGHT_BYTES):
            length = 4 if kind == FOUR_BYTES else 8
        else:
            raise ValueError(f"a field of kind {kind}, which no protocol buffer of Caffe has")
        if at + length > len(message):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and the place after it."""
    value = 0
    for place, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise ValueError("it ends in the middle of a number")


def _blob(message: int | memoryview) -> Tensor:
    """The tensor of a blob: its four sides and its floats."""
    found = dict(fields(message)) if isinstance(message, memoryview) else {}
    sides, floats = [found.get(number) for number in (1, 2, 3, 4)], found.get(5)
    are_sides = all(isinstance(side, int) and 0 < side <= MAX_BYTES for side in sides)
    if not are_sides or not isinstance(floats, memoryview) or len(floats) % 4:
        raise ValueError("a blob without four sides and packed floats")
    if math.prod(sides) != len(floats) // 4:
        raise ValueError(f"a blob of {' × '.join(map(str, sides))} with {len(floats) // 4:,} floats")
    return torch.from_numpy(np.frombuffer(floats, "<f4").astype(np.float32)).reshape(sides)
