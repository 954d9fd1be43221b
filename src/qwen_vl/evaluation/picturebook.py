"""The picture book's exam: questions about scenes that no training draws, marked by rule.

    report = run_exam(QwenVL.load(), num_scenes=500)
    report["what en"].correct, report["what en"].num_questions

Short answers count when they are exactly the one right answer. Boxes count when every box asked for is met with an IoU of at least 0.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import torch
from PIL import Image
from torch import Tensor

from qwen_vl.api import QwenVL
from qwen_vl.evaluation.metrics.grounding import MIN_IOU
from qwen_vl.grounding.box import Box, iou
from qwen_vl.grounding.text import count_unparsed, parse
from qwen_vl.picturebook.catalog import EVALUATION_SEED_START
from qwen_vl.picturebook.compare import compare_tasks
from qwen_vl.picturebook.dialogue import Task
from qwen_vl.picturebook.pictures import Picture, draw
from qwen_vl.picturebook.scene import Scene, make_scene
from qwen_vl.picturebook.tasks import make_tasks
from qwen_vl.processing.images import to_pixel_values
from qwen_vl.processing.resolution import Resolution

SHORT_TASKS = ("what", "colour", "count", "yes_no", "where", "read", "compare")
BOX_TASKS = ("refer",)
COMPARE_SEED_STEP = 500_000  # from a scene to its partner in a comparison
_ENDS = " .。!！?？\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question of the exam: about the pictures with these indices, with its one right answer and the boxes of that answer."""

    task: str
    language: str
    scenes: tuple[int, ...]
    text: str
    answer: str
    boxes: tuple[Box, ...] = ()
    history: tuple[tuple[str, str], ...] = ()  # earlier questions of the conversation and what was answered

    @property
    def topic(self) -> str:
        return f"{self.task} {self.language}"


@dataclass(slots=True)
class Score:
    """What became of the questions of one topic."""

    num_questions: int = 0
    correct: int = 0
    unparsed: int = 0  # answers that should hold a box and hold none that can be read
    ious: list[float] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        return self.correct / self.num_questions if self.num_questions else float("nan")


def write_exam(num_scenes: int, first_seed: int = EVALUATION_SEED_START) -> tuple[list[Scene], list[Question]]:
    """Return the scenes and all their short-answer and box questions, both languages."""
    scenes = [make_scene(first_seed + index) for index in range(num_scenes)]
    partners = [make_scene(first_seed + COMPARE_SEED_STEP + index) for index in range(num_scenes)]
    questions = []
    for index, scene in enumerate(scenes):
        asked: list[tuple[tuple[int, ...], Task]] = [((index,), task) for task in make_tasks(scene) if task.name in SHORT_TASKS + BOX_TASKS]
        asked += [((index, num_scenes + index), task) for task in compare_tasks(scene, partners[index])[:2]]
        for places, task in asked:
            turn = task.turns[0]
            questions.append(
                Question(task=task.name, language=task.language, scenes=places, text=turn.question, answer=turn.answer, boxes=tuple(turn.boxes))
            )
    return scenes + partners, questions


def is_same(answer: str, wanted: str) -> bool:
    """Tell whether an answer is exactly the wanted one; case and marks at the ends do not count."""
    return answer.strip(_ENDS).lower() == wanted.strip(_ENDS).lower()


def mark(question: Question, answer: str, min_iou: float = MIN_IOU) -> tuple[bool, bool, float | None]:
    """Return whether the answer is correct, whether its boxes could be read, and for one asked box the IoU."""
    if question.task not in BOX_TASKS:
        return is_same(answer, question.answer), True, None
    found = [box for ref in parse(answer) for box in ref.boxes]
    is_parsed = bool(found) and not count_unparsed(answer)
    overlaps = [[iou(wanted.to_tuple(), box.to_tuple()) for box in found] for wanted in question.boxes]
    # Each box asked for needs a box of its own; there are never more than a handful.
    is_correct = len(found) == len(question.boxes) and any(
        all(row[place] >= min_iou for row, place in zip(overlaps, places, strict=True)) for places in permutations(range(len(found)))
    )
    return is_correct, is_parsed, max(overlaps[0], default=0.0) if len(overlaps) == 1 else None


def run_exam(
    vl: QwenVL,
    num_scenes: int = 500,
    first_seed: int = EVALUATION_SEED_START,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    topics: Sequence[str] = (),
) -> dict[str, Score]:
    """Ask all questions greedily and return the scores by topic ("what en", "refer zh", ..).

    Args: first_seed: of the scenes; `DEVELOPMENT_SEED_START` while a recipe is being chosen, so that the exam stays unseen.
    """
    scenes, questions = write_exam(num_scenes, first_seed)
    questions = sorted((each for each in questions if not topics or each.task in topics), key=lambda each: (each.task, len(each.scenes)))
    features = encode_pictures(vl, scenes, batch_size)
    scores: dict[str, Score] = {}
    for question, answer in zip(questions, ask_all(vl, questions, features, batch_size, progress=progress), strict=True):
        is_correct, is_parsed, overlap = mark(question, answer)
        score = scores.setdefault(question.topic, Score())
        score.num_questions += 1
        score.correct += is_correct
        score.unparsed += not is_parsed
        if overlap is not None:
            score.ious.append(overlap)
    return dict(sorted(scores.items()))


@torch.no_grad()
def encode_pictures(
    vl: QwenVL, pictures: Sequence[Picture], batch_size: int = 64, change: Callable[[Image.Image], Image.Image] | None = None
) -> Tensor:
    """Draw pictures, `change` them and return their features, [num_pictures, image_slots, dim]."""
    resolution = Resolution.of(vl.model.config.visual or {})
    parts = []
    for start in range(0, len(pictures), batch_size):
        drawn = [draw(picture) for picture in pictures[start : start + batch_size]]
        parts.append(vl.model.get_image_features(to_pixel_values([change(image) for image in drawn] if change else drawn, resolution)))
    return torch.cat(parts)


def ask_all(
    vl: QwenVL,
    questions: Sequence[Question],
    features: Tensor,
    batch_size: int = 64,
    max_new_tokens: int = 120,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Answer questions greedily, `batch_size` together; those of one length stand together best."""
    answers = []
    for start in range(0, len(questions), batch_size):
        answers += answer_batch(vl, questions[start : start + batch_size], features, max_new_tokens)
        if progress is not None:
            progress(len(answers), len(questions))
    return answers


def answer_batch(vl: QwenVL, questions: Sequence[Question], features: Tensor, max_new_tokens: int = 120) -> list[str]:
    """Answer questions together, left-padded. Each is asked on its own, as `QwenVL.ask` would, or after its history as a chat would."""
    rows = []
    for question in questions:
        spans = "\n".join(f"Picture {number + 1}: <img></img>" for number in range(len(question.scenes)))
        texts = [asked for asked, _ in question.history] + [question.text]
        texts[0] = f"{spans}\n{texts[0]}"
        history = list(zip(texts, (answered for _, answered in question.history), strict=False))
        rows.append(vl.tokenizer.build_chat_context(texts[-1], history)[1])
    longest = max(len(row) for row in rows)
    pad = vl.tokenizer.eod_id
    input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])  # [batch, seq]
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    pictures = features[torch.tensor([place for question in questions for place in question.scenes])]
    output = vl.model.generate(
        input_ids.to(vl.model.device),
        attention_mask=mask.to(vl.model.device),
        image_features=pictures,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=[vl.tokenizer.eod_id, vl.tokenizer.im_end_id],
        pad_token_id=pad,
    )
    answers = output[:, longest:].tolist()
    ends = {vl.tokenizer.eod_id, vl.tokenizer.im_end_id}
    return [vl.tokenizer.decode(row[: next((index for index, token in enumerate(row) if token in ends), len(row))]) for row in answers]
