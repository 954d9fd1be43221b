"""Pictures of a request: loaded once, encoded once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from PIL import Image
from torch import Tensor

from qwen_vl.engine import Engine
from qwen_vl.errors import ConfigError
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.processing.handles import pixel_key
from qwen_vl.processing.images import ImageSource, load_image, to_pixel_values
from qwen_vl.processing.resolution import Resolution


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what the vision tower made of it."""

    image: Image.Image  # RGB, original size
    features: Tensor  # [image_slots, dim]
    key: str  # digest of what the vision tower saw
    generation: int  # of the engine's weights


def list_sources(images: ImageSource | Sequence[ImageSource] | None) -> list[ImageSource]:
    """Return one picture, several or none as a list. Only lists and tuples are several: bytes and arrays are one picture."""
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [cast(ImageSource, images)]


def is_one_picture(value: object) -> bool:
    """Tell whether this is a single picture, though one could iterate over it."""
    return isinstance(value, str | bytes | os.PathLike | Image.Image) or hasattr(value, "__array__")


def load_pictures(model: QWenLMHeadModel, engine: Engine, images: ImageSource | Sequence[ImageSource] | None) -> list[Picture]:
    """Load the pictures of a question, and encode those that the engine does not know in one pass of the vision tower.

    Every question begins here, also one without pictures: if the weights have changed, what the engine knows is forgotten.

    Raises: ImageError for a picture that cannot be used; ConfigError if the checkpoint is a text-only one.
    """
    engine.forget_if_changed()
    generation = engine.generation
    sources = list_sources(images)
    if not sources:
        return []
    if model.config.visual is None:
        raise ConfigError("This checkpoint is a text-only Qwen: it cannot see pictures. Load Qwen/Qwen-VL-Chat, or ask without a picture.")
    loaded = [load_image(source) for source in sources]
    pixel_values = to_pixel_values(loaded, Resolution.of(model.config.visual))
    keys = [pixel_key(each) for each in pixel_values]
    features = engine.features.fetch(keys, list(pixel_values))
    return [Picture(image, vectors, key, generation) for image, vectors, key in zip(loaded, features, keys, strict=True)]
