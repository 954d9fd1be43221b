"""How likely each of a few candidates is to follow a prompt: the mean negative log-likelihood of its tokens, the lowest of which wins.

    losses = begin_choice(vl, ids, pictures, [encode(" A"), encode(" B")])
    while not losses.poll():
        vl.engine.step()
    losses.losses, losses.choice     # (0.31, 1.43), 0

Candidates of one token each take one pass over the prompt: all are read from the logits after its last token. Longer ones are walked along, token by
token, by a request for each; what they share of the prompt comes from the engine's prefix cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qwen_vl.api.model import QwenVL
from qwen_vl.api.raw import greedy_params
from qwen_vl.engine import Handle, Picture, Processor, Request
from qwen_vl.errors import ContextLengthError, PromptError


class Choice:
    """A choice that is being made."""

    def __init__(self, walks: Sequence[tuple[Handle, "_Walk"]]) -> None:
        self._walks = list(walks)
        self._waiting = list(walks)

    def poll(self) -> bool:
        """Tell whether all candidates are known. Raises: CapacityError and others if a request failed."""
        self._waiting = [(handle, walk) for handle, walk in self._waiting if not _is_over(handle)]
        return not self._waiting

    @property
    def losses(self) -> tuple[float, ...]:
        """The mean negative log-likelihood of each candidate's tokens, in nats; over the ids that have a token."""
        return tuple(loss for _, walk in self._walks for loss in walk.losses())

    @property
    def choice(self) -> int:
        """The index of the likeliest candidate, the first of several that are equal."""
        losses = self.losses
        return losses.index(min(losses))

    def cancel(self) -> None:
        """Stop."""
        for handle, _ in self._waiting:
            handle.cancel()


def begin_choice(vl: QwenVL, input_ids: Sequence[int], pictures: Sequence[Picture], candidates: Sequence[Sequence[int]]) -> Choice:
    """Hand a prompt and its candidates' tokens to the engine.

    Raises: PromptError without candidates, or for an empty one; CapacityError if they do not fit.
    """
    if not candidates or not all(candidates):
        raise PromptError("There must be at least one candidate, and each must have at least one token.")
    longest, limit = len(input_ids) + max(map(len, candidates)), int(vl.model.config.max_position_embeddings)
    if longest > limit:
        raise ContextLengthError(f"The prompt with its longest candidate takes {longest} tokens, but this model's context holds {limit}. Shorten it.")
    is_short = all(len(candidate) == 1 for candidate in candidates)
    vl.engine.forget_if_changed()
    walks = [_Walk([[candidate[0] for candidate in candidates]])] if is_short else [_Walk([[each] for each in candidate]) for candidate in candidates]
    return Choice([(_submit(vl, input_ids, pictures, walk), walk) for walk in walks])


def _submit(vl: QwenVL, input_ids: Sequence[int], pictures: Sequence[Picture], walk: "_Walk") -> Handle:
    return vl.engine.submit(Request(input_ids=input_ids, sampling=greedy_params(len(walk.steps), [walk]), pictures=pictures))


def _is_over(handle: Handle) -> bool:
    is_over = handle.finish_reason is not None
    handle.poll()
    return is_over


class _Walk(Processor):
    """Walks along given tokens, and notes how likely each was: at each step the first of its tokens is taken, and all of them are noted."""

    def __init__(self, steps: Sequence[Sequence[int]]) -> None:
        self.steps = steps
        self._noted: dict[int, list[float]] = {}  # by step: the engine may do a round again

    def __call__(self, generated_ids: Tensor, scores: Tensor) -> Tensor:
        """Args: generated_ids [1, new]; scores [1, vocab_size]. Returns: scores that leave one token."""
        step = generated_ids.shape[1]
        ids = torch.tensor(self.steps[step], device=scores.device)
        self._noted[step] = (-scores[0].double().log_softmax(dim=-1)[ids]).tolist()
        return torch.full_like(scores, float("-inf")).index_fill(1, ids[:1], 0.0)

    def losses(self) -> list[float]:
        """Return the loss of each candidate: of one walk the mean over its steps, of a single step each token's own."""
        if len(self.steps) == 1:
            return self._noted[0]
        return [sum(self._noted[step][0] for step in range(len(self.steps))) / len(self.steps)]
