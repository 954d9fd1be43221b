"""The release's list format: prompts as a list of one-key dictionaries, there and back.

    from_list_format([{"image": "dog.jpg"}, {"text": "What is it?"}])  # "Picture 1:<img>dog.jpg</img>\\nWhat is it?"
    to_list_format("<ref>dog</ref><box>(1,2),(3,4)</box>")             # [{"ref": "dog"}, {"box": "(1,2),(3,4)"}]

The two are not each other's inverse, as in the release: boxes are tuples on the way in and strings on the way out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_vl.errors import PromptError
from qwen_vl.grounding.tags import BOX_END, BOX_START, IMG_END, IMG_START, REF_END, REF_START
from qwen_vl.grounding.text import split_elements


def from_list_format(elements: Sequence[Mapping[str, Any]], space_after_picture: bool = False) -> str:
    """Write a prompt from its elements, numbering the pictures of this call from 1.

    Args:
        elements: dictionaries with `image`, `text`, or `box` (four numbers each) with or without `ref`.
        space_after_picture: write `Picture 1: <img>` as the newer chat release does, not `Picture 1:<img>`.
    Raises: PromptError (a ValueError) for an element of another kind.
    """
    pieces: list[str] = []
    num_pictures = 0
    for element in elements:
        if not isinstance(element, Mapping):
            raise PromptError(f"Unsupport element: {element!r}. Use dictionaries with the key image, text, or box.")
        if "image" in element:
            num_pictures += 1
            pieces.append(format_picture(num_pictures, element["image"], space_after_picture))
        elif "text" in element:
            pieces.append(str(element["text"]))
        elif "box" in element:
            pieces.append(_format_boxes(element))
        else:
            raise PromptError(f"Unsupport element: {element}")
    return "".join(pieces)


def format_picture(number: int, path: object, space_after_picture: bool = False) -> str:
    """Write the line that announces picture `number`."""
    return f"Picture {number}:{' ' if space_after_picture else ''}{IMG_START}{path}{IMG_END}\n"


def _format_boxes(element: Mapping[str, Any]) -> str:
    """Write the reference, if there is one, and its boxes; fractions are cut off."""
    text = f"{REF_START}{element['ref']}{REF_END}" if "ref" in element else ""
    for box in element["box"]:
        try:
            x1, y1, x2, y2 = map(int, box)
        except (TypeError, ValueError, OverflowError):
            raise PromptError(f"Unsupport element: {element}. A box is four numbers (x1, y1, x2, y2) on the 0..999 grid.") from None
        text += f"{BOX_START}({x1},{y1}),({x2},{y2}){BOX_END}"
    return text


def to_list_format(text: str) -> list[dict[str, str]]:
    """Split a text into pictures, references, boxes, quads and the text between them.

    Defined for every string: unclosed tags and chat control tokens are ordinary text (FACTS quirk 31).
    """
    return split_elements(text)
