"""What a frozen vision tower makes of pictures, kept: it would make the same of them in every epoch.

    cache = FeatureCache(model.transformer.visual, max_bytes=8 * 2**30, folder=Path("features"))
    features = cache.encode([KeyedPicture.of("dog.jpg", Resolution(image_size=448))])  # [1, image_slots, dim]

A picture is known by the content of its file, the tower by its weights and its resolution. Pictures are encoded one at a time, so that what is kept
does not depend on what else was in the batch, and a run that begins with a full cache is the same as one that begins with an empty one.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qwen_vl.errors import ConfigError
from qwen_vl.processing.decoding import decode_picture
from qwen_vl.processing.images import to_pixel_values
from qwen_vl.processing.resolution import Resolution
from qwen_vl.processing.sources import describe, read_source
from qwen_vl.whole import whole_file

TENSOR = "features"
DEVICES = ("cpu", "cuda", "mps")
WEIGHTS_DIGITS = 16  # of the digest that names a tower's folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyedPicture:
    """A picture by the digest of its file. `pixel_values` [1, 3, height, width] are left out if its features are known already."""

    key: str
    source: str
    resolution: Resolution
    pixel_values: Tensor | None

    @classmethod
    def of(cls, source: str, resolution: Resolution, is_known: Callable[[str], bool] = lambda key: False) -> "KeyedPicture":
        """Read a picture, and decode it unless its features are known. Raises: ImageError as `load_image` does."""
        content = read_source(source)
        key = hashlib.sha256(content).hexdigest()
        pixels = None if is_known(key) else to_pixel_values([decode_picture(content, describe(source))], resolution)[0][None]
        return cls(key, source, resolution, pixels)


class FeatureCache:
    """Encodes each picture once, as long as there is room.

    What is kept stays: every picture comes once an epoch, so dropping the oldest for the newest would lose each just before it is needed.

    Args:
        visual: the vision tower with its resampler, on its device; all of it frozen.
        max_bytes: room for features, in memory or in the folder. A picture takes image_slots * dim numbers: 2 MiB for the released model in bf16.
        folder: keep them there, for other processes and later runs; a tower of other weights does not find them.
        autocast: the context in which the tower runs, the same as in training.
    Raises: ConfigError if a parameter is trained.
    """

    def __init__(
        self,
        visual: nn.Module,
        *,
        max_bytes: int,
        folder: Path | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        trained = [name for name, parameter in visual.named_parameters() if parameter.requires_grad]
        if trained:
            raise ConfigError(f"Features of pictures cannot be kept: {len(trained)} tensors of the vision tower are trained, such as {trained[0]}.")
        if max_bytes < 0:
            raise ConfigError(f"max_bytes={max_bytes} must not be negative.")
        self.visual, self.autocast = visual, autocast
        self.num_bytes, self.max_bytes = 0, max_bytes  # in memory, or in the folder
        self.memory: dict[str, Tensor] = {}
        self.folder = None if folder is None else folder / self._name_weights(visual)
        if self.folder is not None:
            self._open_folder(self.folder)

    def holds(self, key: str) -> bool:
        """Tell whether the features of a picture are kept."""
        return key in self.memory or (self.folder is not None and self._place(self.folder, key).exists())

    def encode(self, pictures: Sequence[KeyedPicture]) -> Tensor:
        """Return the features of pictures, [num_images, image_slots, dim], on the tower's device."""
        device = next(self.visual.parameters()).device
        return torch.cat([self._features_of(picture).to(device, non_blocking=True) for picture in pictures])

    def _features_of(self, picture: KeyedPicture) -> Tensor:
        """Return what is kept, [1, image_slots, dim], or encode and keep it."""
        found = self._find(picture.key)
        if found is not None:
            return found
        pixels = picture.pixel_values
        if pixels is None:  # known when it was read, and lost since
            pixels = KeyedPicture.of(picture.source, picture.resolution).pixel_values
        assert pixels is not None
        device = next(self.visual.parameters()).device
        with torch.no_grad(), self.autocast():
            features: Tensor = self.visual(pixels.to(device))
        self._keep(picture.key, features)
        return features

    def _find(self, key: str) -> Tensor | None:
        """Return what is kept of a picture; a damaged file counts as none."""
        if self.folder is None:
            return self.memory.get(key)
        try:
            return load_file(self._place(self.folder, key))[TENSOR]
        except (OSError, SafetensorError, KeyError):
            return None

    def _keep(self, key: str, features: Tensor) -> None:
        """Keep features if there is room."""
        size = features.numel() * features.element_size()
        if self.num_bytes + size > self.max_bytes:
            return
        kept = features.cpu().contiguous().clone()
        if self.folder is None:
            self.memory[key] = kept
        elif not self._write(self._place(self.folder, key), kept):
            return
        self.num_bytes += size

    def _write(self, place: Path, features: Tensor) -> bool:
        """Write a file whole or not at all. A disk that is full ends the keeping, not the run."""
        try:
            with whole_file(place) as work:
                save_file({TENSOR: features}, work)
        except (OSError, SafetensorError) as error:
            logger.warning("Features of pictures are no longer kept: %s cannot be written (%s).", place.parent, error)
            self.max_bytes = self.num_bytes
            return False
        return True

    def _open_folder(self, folder: Path) -> None:
        """Make the tower's folder and count what it holds. Raises: ConfigError if it cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.num_bytes = sum(place.stat().st_size for place in folder.glob("[!.]*.safetensors"))  # hidden ones are not whole yet
        except OSError as error:
            raise ConfigError(f"{folder} cannot keep features: {error.strerror}. Choose another folder.") from None

    def _name_weights(self, visual: nn.Module) -> str:
        """Return a digest of the tower's tensors, of the pictures that it takes, and of the precision that it runs in."""
        with self.autocast():  # of any device: the tower may be moved later
            precision = ", ".join(f"{kind} {torch.get_autocast_dtype(kind)}" for kind in DEVICES if torch.is_autocast_enabled(kind))
        digest = hashlib.sha256(f"{precision}; {visual.image_size} {visual.max_patches} ".encode())
        for name, tensor in _tensors(visual):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:WEIGHTS_DIGITS]

    def _place(self, folder: Path, key: str) -> Path:
        return folder / f"{key}.safetensors"


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers."""
    yield from module.named_parameters()
    yield from module.named_buffers()
