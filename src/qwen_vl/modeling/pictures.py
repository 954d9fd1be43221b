"""Where pictures sit in the token ids: spans `<img>` + slots + `</img>`, found, read and overwritten with picture features."""

import torch
from torch import Tensor

from qwen_vl.errors import PromptError, ShapeError


def find_spans(input_ids: Tensor, image_start_id: int, image_slots: int) -> Tensor:
    """Find every picture span.

    Args: input_ids [batch, seq].
    Returns: [num_spans, 2], the row and the index of `<img>` of each span, row-major.
    Raises: PromptError for a start or an end that is not part of a whole span.
    """
    starts, ends = (input_ids == image_start_id).nonzero(), (input_ids == image_start_id + 1).nonzero()
    if len(starts) != len(ends) or not torch.equal(starts + starts.new_tensor([0, image_slots + 1]), ends):
        raise PromptError(
            f"the token ids hold {len(starts)} <img> and {len(ends)} </img> that do not form spans of {image_slots} slots; "
            "build them with the tokenizer or the processor of this checkpoint, and never cut the ids inside a picture"
        )
    return starts


def find_whole_spans(input_ids: Tensor, image_start_id: int, image_slots: int) -> Tensor:
    """Find the picture spans as `find_spans` does, but leave out starts and ends without their partner: a model may write them."""
    starts = (input_ids == image_start_id).nonzero()
    starts = starts[starts[:, 1] + image_slots + 1 < input_ids.shape[1]]
    return starts[input_ids[starts[:, 0], starts[:, 1] + image_slots + 1] == image_start_id + 1]


def slot_indices(spans: Tensor, image_slots: int) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of all slots. Args: spans [num_spans, 2]. Returns: two [num_spans, image_slots]."""
    columns = spans[:, 1:] + torch.arange(1, image_slots + 1, device=spans.device)
    return spans[:, :1].expand_as(columns), columns


def read_paths(input_ids: Tensor, spans: Tensor, image_pad_id: int, image_slots: int) -> list[str]:
    """Read the path of each span: the slots up to the first `<imgpad>` are its UTF-8 bytes. Raises: PromptError if they are not."""
    paths = []
    for slots in input_ids[slot_indices(spans, image_slots)].tolist():
        content = slots[: slots.index(image_pad_id)] if image_pad_id in slots else slots
        try:
            paths.append(bytes(content).decode("utf-8"))
        except ValueError as error:
            raise PromptError("a picture span does not hold the bytes of a path; pass pixel_values for it") from error
    return paths


def merge_features(inputs_embeds: Tensor, spans: Tensor, image_features: Tensor) -> Tensor:
    """Overwrite the slots' embeddings with picture features.

    Args:
        inputs_embeds: [batch, seq, dim]; image_features: [num_spans, image_slots, dim] in the order of `spans`.
    Returns: [batch, seq, dim], a new tensor. Raises: ShapeError when the counts differ.
    """
    if image_features.shape[0] != spans.shape[0] or image_features.shape[-1] != inputs_embeds.shape[-1]:
        raise ShapeError(
            f"{spans.shape[0]} picture spans in the token ids, but features of shape {tuple(image_features.shape)}; "
            f"expected one [image_slots, {inputs_embeds.shape[-1]}] per span"
        )
    indices = slot_indices(spans, image_features.shape[1])
    return inputs_embeds.index_put(indices, image_features.to(inputs_embeds.device, inputs_embeds.dtype))
