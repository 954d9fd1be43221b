"""From a request to a job: everything about it that could be wrong is found here, before anybody waits for it."""

import torch

from qwen_vl.errors import ConfigError, ShapeError
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.modeling.pictures import find_whole_spans
from qwen_vl.modeling.rotary import ntk_level

from .prefixes import Span
from .request import Handle, Request
from .sampling import Sampler
from .scheduler import Job


def num_tokens_of(model: QWenLMHeadModel) -> int:
    """Return the ids that have a token: from here on the output head's rows have none."""
    config = model.config
    return int(min(config.image_start_id + 3, config.vocab_size) if config.visual is not None else config.vocab_size)


def make_job(model: QWenLMHeadModel, request: Request, handle: Handle, num_tokens: int, generation: int) -> Job:
    """Return the job of a request, for weights of this generation.

    Raises: ConfigError for an empty prompt, or ids that are none; ShapeError if pictures and spans do not match.
    """
    ids, config = list(request.input_ids), model.config
    if not ids:
        raise ConfigError("the prompt is empty; it must have at least one token")
    if not 0 <= min(ids) <= max(ids) < config.vocab_size:
        raise ConfigError(f"the prompt's ids reach from {min(ids)} to {max(ids)}, but the model knows 0 to {config.vocab_size - 1}")
    level = int(ntk_level(torch.tensor([len(ids)]), config.seq_length)) if config.use_dynamic_ntk else 0
    sampler = Sampler(request.sampling, ids, num_tokens, model.lm_head.weight.device)
    handle.logprobs = sampler.logprobs
    spans = _spans(model, request, ids)
    return Job(request=request, handle=handle, sampler=sampler, ids=ids, spans=spans, level=level, generation=generation)


def _spans(model: QWenLMHeadModel, request: Request, ids: list[int]) -> list[Span]:
    if not request.pictures:
        return []
    config = model.config
    starts = find_whole_spans(torch.tensor([ids]), config.image_start_id, config.image_slots)[:, 1].tolist()
    shape = (config.image_slots, config.hidden_size)
    if len(starts) != len(request.pictures) or any(picture.features.shape != shape for picture in request.pictures):
        shapes = [tuple(picture.features.shape) for picture in request.pictures]
        raise ShapeError(f"{len(starts)} picture spans in the token ids, but features of shapes {shapes}; expected {shape} for each span")
    pairs = zip(starts, request.pictures, strict=True)
    return [Span(start + 1, start + 1 + config.image_slots, picture.key) for start, picture in pairs]
