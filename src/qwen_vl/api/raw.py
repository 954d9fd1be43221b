"""Prompts that a model reads exactly as they stand, and the engine's settings for them; for evaluations, which must ask as the release's scripts do.

Nothing is added to the prompt, and nothing but what the caller names ends an answer. Pictures are loaded in any thread, then encoded together.

    pictures = encode_pictures(vl, [load_picture(vl, "street.jpg")])
    ids = encode_prompt(vl.tokenizer, "<img></img>What is it? Answer:")
    answer = begin_raw(vl, ids, pictures, max_new_tokens=10)
    while not answer.poll():       # reads what has come
        vl.engine.step()           # one round for everything in flight
    answer.text
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qwen_vl.api.boxes import BoxRecorder, box_tokens
from qwen_vl.api.model import QwenVL
from qwen_vl.api.sampling import DEFAULT_MAX_NEW_TOKENS, Sampling, to_engine
from qwen_vl.engine import Handle, Processor, Request, SamplingParams
from qwen_vl.engine import Picture as EnginePicture
from qwen_vl.errors import ConfigError, ContextLengthError
from qwen_vl.grounding.confidence import BoxScore
from qwen_vl.grounding.tags import IMG_END, IMG_START
from qwen_vl.processing.handles import pixel_key
from qwen_vl.processing.images import ImageSource, load_image, to_pixel_values
from qwen_vl.processing.resolution import Resolution
from qwen_vl.processing.tokenization import QWenTokenizer
from qwen_vl.prompt.chatml import DEFAULT_MAX_WINDOW_SIZE, DEFAULT_SYSTEM
from qwen_vl.prompt.content import Content, PicturePath, Text

PLACE = IMG_START + IMG_END


@dataclass(frozen=True, slots=True)
class LoadedPicture:
    """A picture as the vision tower takes it."""

    pixel_values: Tensor  # [3, height, width], float32
    key: str  # digest of the pixel values


def load_picture(vl: QwenVL, source: ImageSource) -> LoadedPicture:
    """Load a picture; from any thread. Raises: ImageError; ConfigError if the checkpoint is a text-only one."""
    if vl.model.config.visual is None:
        raise ConfigError("This checkpoint is a text-only Qwen: it cannot see pictures. Choose one that can.")
    pixel_values = to_pixel_values([load_image(source, allow_urls=False)], Resolution.of(vl.model.config.visual))[0]
    return LoadedPicture(pixel_values, pixel_key(pixel_values))


def encode_pictures(vl: QwenVL, pictures: Sequence[LoadedPicture]) -> list[EnginePicture]:
    """Return what the vision tower makes of the pictures: as few passes as can be for all that the engine does not know yet."""
    if not pictures:
        return []
    vl.engine.forget_if_changed()
    keys = [picture.key for picture in pictures]
    encoded = vl.engine.features.fetch(keys, [picture.pixel_values for picture in pictures])
    return [EnginePicture(key=key, features=features) for key, features in zip(keys, encoded, strict=True)]


def split_prompt(prompt: str) -> Content:
    """Read a prompt with `<img></img>` for each picture; a picture's tags that stand anywhere else stay text."""
    texts = prompt.split(PLACE)
    pieces: list[Text | PicturePath] = []
    for number, text in enumerate(texts):
        pieces += ([PicturePath(f"picture-{number}")] if number else []) + ([Text(text)] if text else [])
    return Content(tuple(pieces))


def encode_prompt(tokenizer: QWenTokenizer, prompt: str) -> list[int]:
    """Return the ids of a prompt, in which special tokens of references and boxes count and all others are plain text."""
    return tokenizer.chat_writer().encode(split_prompt(prompt))


def encode_chat_prompt(vl: QwenVL, prompt: str, system: str = DEFAULT_SYSTEM) -> list[int]:
    """Return the ids of a conversation in which a prompt is the first thing that the user says, as the release's `model.chat` has it (FACTS 6.1).

    Raises: ConfigError for a base checkpoint.
    """
    if not vl.is_chat:
        raise ConfigError(f"{vl.name} is a base checkpoint, which holds no conversations. Choose a chat checkpoint, or another task.")
    window = getattr(vl.model.generation_config, "max_window_size", None) or DEFAULT_MAX_WINDOW_SIZE
    return vl.tokenizer.build_chat_context(split_prompt(prompt), [], system, window)[1]


class RawAnswer:
    """An answer that is being written."""

    def __init__(self, vl: QwenVL, handle: Handle, stop_ids: Collection[int], recorder: "_OpenBoxRecorder | None") -> None:
        self.new_ids: list[int] = []  # with the token that ended the answer
        self._stop_ids = frozenset(stop_ids)
        self._tokenizer, self._handle, self._recorder = vl.tokenizer, handle, recorder

    def poll(self) -> bool:
        """Read what has come and tell whether that is all. Raises: CapacityError and others if the request failed."""
        is_over = self._handle.finish_reason is not None  # asked first: all tokens are there when it is set
        self.new_ids += self._handle.poll()
        return is_over

    @property
    def text(self) -> str:
        """What was written, special tokens skipped."""
        return str(self._tokenizer.decode(self.new_ids, skip_special_tokens=True))

    @property
    def tagged_text(self) -> str:
        """What was written, with the tags of references and boxes; as the release's `chat` gives it, but for blanks at its ends."""
        ids = self.new_ids[:-1] if self.new_ids and self.new_ids[-1] in self._stop_ids else self.new_ids
        return str(self._tokenizer.decode(ids))

    @property
    def box_scores(self) -> tuple[BoxScore, ...] | None:
        """How sure the model was of each box; None if that was not asked for."""
        return None if self._recorder is None else self._recorder.scores(self.new_ids)

    def cancel(self) -> None:
        """Stop writing."""
        self._handle.cancel()


def begin_raw(
    vl: QwenVL,
    input_ids: Sequence[int],
    pictures: Sequence[EnginePicture] = (),
    *,
    stop_ids: Collection[int] | None = None,
    confidence: bool = False,
    **sampling: Any,
) -> RawAnswer:
    """Hand a prompt to the engine.

    Args:
        stop_ids: tokens that end the answer; default: the end of text alone, which is what the release's scripts stop at.
        confidence: note how sure the model is of the boxes that it writes, also of one that the prompt opens.
        sampling: as `QwenVL.ask`, without `boxes`, `logprobs` and `stop`; greedy unless said otherwise.
    An answer ends where the model's context does. Raises: CapacityError if the prompt does not fit; ConfigError for settings that cannot work.
    """
    for name in ("boxes", "logprobs", "stop"):
        if sampling.get(name) is not None:
            raise ConfigError(f"A raw prompt takes no {name}. Use ask, or leave it out.")
    settings = Sampling.of(**{"do_sample": False, "num_beams": 1, **sampling})
    room = int(vl.model.config.max_position_embeddings) - len(input_ids)
    if room < 1:
        raise ContextLengthError(f"The prompt takes {len(input_ids)} tokens, but this model's context holds {room + len(input_ids)}. Shorten it.")
    most = min(settings.max_new_tokens or vl.model.generation_config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS, room)
    stops = sorted(stop_ids or {vl.tokenizer.eod_id})
    config = settings.to_generation_config(vl.model.generation_config, stops, vl.tokenizer.eod_id, max_new_tokens=most)
    config.min_new_tokens = min(config.min_new_tokens or 0, most)
    params = to_engine(config, settings.seed)
    if params is None:
        raise ConfigError("The checkpoint's generation_config.json asks for something that only transformers' generate does. Remove that.")
    recorder = _OpenBoxRecorder(vl.tokenizer, input_ids[-1]) if confidence else None
    params = replace(params, processors=[recorder] if recorder else [])
    return RawAnswer(vl, vl.engine.submit(Request(input_ids=input_ids, sampling=params, pictures=pictures)), stops, recorder)


def chat_stop_ids(tokenizer: QWenTokenizer) -> set[int]:
    """Return the tokens that end a reply in a conversation."""
    return {tokenizer.eod_id, tokenizer.im_end_id, tokenizer.im_start_id}


class _OpenBoxRecorder(Processor):
    """Notes the probabilities of boxes, the first of which the prompt may have opened: its last token is read as part of the answer."""

    def __init__(self, tokenizer: QWenTokenizer, last_id: int) -> None:
        tokens = box_tokens(tokenizer)
        self._before = [last_id] if last_id == tokens.box_start else []
        self._recorder = BoxRecorder(tokens, num_prompt_tokens=0)

    def __call__(self, generated_ids: Tensor, scores: Tensor) -> Tensor:
        self._recorder(torch.cat((generated_ids.new_tensor([self._before]).to(torch.long), generated_ids), dim=1), scores)
        return scores

    def scores(self, new_ids: Sequence[int]) -> tuple[BoxScore, ...]:
        """Return the scores of the answer's boxes."""
        return tuple(self._recorder.scores([*self._before, *new_ids]))


def greedy_params(max_new_tokens: int, processors: Sequence[Processor]) -> SamplingParams:
    """Return the settings of a request whose tokens a processor decides, and nothing ends early."""
    return SamplingParams(max_new_tokens=max_new_tokens, processors=processors)
