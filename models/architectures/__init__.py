"""The architectures behind :mod:`pudica.models.zoo`, one file a family.

Every constructor takes the :class:`ImageTask` and returns a freshly initialised module from
images to logits; names, limits and seeds are the registry's business.
"""

from __future__ import annotations

from typing import NamedTuple

TORCHVISION = "torchvision:"
"""How the names of torchvision's classifiers begin."""


class ImageTask(NamedTuple):
    """What a classifier must fit.

    Attributes
    ----------
    num_classes : int
        How many logits it returns.
    channels : int
        Channels of its images.
    image_size : int
        Their side in pixels.
    """

    num_classes: int
    channels: int
    image_size: int
