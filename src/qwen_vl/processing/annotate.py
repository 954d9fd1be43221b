"""Draw the boxes of an answer on the latest picture of a conversation, as the release's tokenizer does (FACTS 5.9).

annotated = draw_on_latest_picture("<ref>dog</ref><box>(219,424),(576,896)</box>", [("<img>dog.jpg</img>Find it", "")])
if annotated: annotated.save("out.png")
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from qwen_vl.errors import ImageError
from qwen_vl.processing.images import load_image
from qwen_vl.prompt.chatml import Turn, check_turn
from qwen_vl.prompt.list_format import to_list_format


class AnnotatedPicture:
    """A picture with boxes drawn on it; always true, so that `if annotated:` tells it from None."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture in the format that the extension names. Raises: ImageError if that cannot be done."""
        try:
            self.image.save(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "the extension must be one of a picture format, such as .png or .jpg"
            raise ImageError(f"Cannot write the picture {os.fsdecode(path)!r}: {reason}.") from None

    def get_image(self) -> np.ndarray[Any, Any]:
        """Return the picture as a uint8 array [height, width, 3]."""
        return np.array(self.image)


def find_latest_picture(response: str, history: Sequence[Turn] | None = None) -> str | None:
    """Return the path of the last picture in the response, or else in the newest query that names one; replies are not searched."""
    queries = [str(check_turn(turn)[0]) for turn in history or ()]
    for text in (response, *reversed(queries)):
        pictures = [element["image"] for element in to_list_format(text) if "image" in element]
        if pictures:
            return pictures[-1]
    return None


def find_boxes_with_refs(text: str) -> list[dict[str, Any]]:
    """Return each box of four whole numbers as `{"box": (x1, y1, x2, y2)}`, with `ref` if one stands directly before it."""
    boxes: list[dict[str, Any]] = []
    before: dict[str, str] = {}
    for element in to_list_format(text):
        corners = _corners(element["box"]) if "box" in element else None
        if corners is not None:
            boxes.append({"box": corners} | ({"ref": before["ref"].strip()} if "ref" in before else {}))
        before = element
    return boxes


def _corners(text: str) -> tuple[int, ...] | None:
    """Read `(x1,y1),(x2,y2)`; None if it is anything but four whole numbers."""
    try:
        numbers = tuple(map(int, text.replace("(", "").replace(")", "").split(",")))
    except ValueError:
        return None
    return numbers if len(numbers) == 4 else None


def draw_on_latest_picture(response: str, history: Sequence[Turn] | None = None, font_path: str | None = None) -> AnnotatedPicture | None:
    """Draw the boxes of the response on the latest picture at its original size; None without a picture or a box.

    Raises: ImageError if the picture cannot be read.
    """
    # Imported late: tokenizing needs no drawing.
    from qwen_vl.grounding.draw import draw_refs
    from qwen_vl.grounding.text import parse

    refs = parse(response)
    path = find_latest_picture(response, history)
    if path is None or not refs:
        return None
    return AnnotatedPicture(draw_refs(load_image(path), refs, font_path=font_path))
