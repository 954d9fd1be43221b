"""Ask a model all samples of a task: many at once, on any number of processes, each sample once, whatever kills the run in between.

    results = run(vl, task, samples, folder, root=root)     # one Result for each sample, in order; what the folder holds is not asked again

Pictures are decoded in threads, ahead of their turn; those of several samples go through the vision tower together, and all samples in flight are
written together by the engine. An answer is what it would have been alone. What is wrong with one sample alone, a picture that cannot be read say, is
that sample's error; everything else is raised.
"""

import hashlib
import platform
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from qwen_vl.api import QwenVL
from qwen_vl.api.likelihood import Choice, begin_choice
from qwen_vl.api.raw import LoadedPicture, RawAnswer, begin_raw, chat_stop_ids, encode_chat_prompt, encode_pictures, encode_prompt, load_picture
from qwen_vl.errors import CapacityError, DataError, ImageError, PromptError
from qwen_vl.evaluation.processes import Processes
from qwen_vl.evaluation.results import Store, prompt_hash
from qwen_vl.evaluation.task import Result, Sample, Task
from qwen_vl.modeling.fingerprint import name_model
from qwen_vl.surroundings import find_versions

ENCODE_AT_ONCE = 8  # samples whose pictures go through the vision tower together
KEPT_PICTURES = 64  # decoded ones, for samples in a row about the same picture
VERSIONS_OF = ("qwen-vl", "torch", "transformers", "pillow")

OF_ONE_SAMPLE = (ImageError, PromptError, CapacityError)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What the user may choose about a run, and what changes the answers."""

    few_shot: int = 0
    seed: int = 0
    confidence: bool = False


def run(
    vl: QwenVL,
    task: Task,
    samples: Sequence[Sample],
    folder: Path,
    *,
    root: Path,
    choices: Choices | None = None,
    processes: Processes | None = None,
    num_threads: int = 4,
    progress: Progress | None = None,
) -> list[Result]:
    """Ask all samples that the folder holds no answer to, and return the results of all, in order.

    Every process calls it with the same samples and asks its own share; all of them return all results. The folder must be held by the caller.

    Args:
        root: pictures are named by their place below this folder.
        num_threads: that decode pictures.
        progress: called with (done, total), of all samples as far as this process knows.
    Raises: ConfigError if the folder holds another run; DataError for a damaged folder or two samples of one id; what the model raises.
    """
    processes, choices = processes or Processes(), choices or Choices()
    hashes = {sample.id: prompt_hash(sample, root) for sample in samples}
    if len(hashes) < len(samples):
        raise DataError(f"Of {len(samples)} samples of {task.name} only {len(hashes)} have an id of their own. Ids must differ.")
    store = Store(folder)
    if processes.is_main:
        store.open(settings_of(vl, task, choices), about={"python": platform.python_version(), **find_versions(*VERSIONS_OF)})
    processes.wait()
    done = store.read(hashes)
    processes.wait()  # nobody writes before all have read: the shares are the same for all
    waiting = [sample for sample in samples if sample.id not in done]
    mine = processes.share_of(waiting)
    with store.journal(processes.rank) as journal:
        for number, result in enumerate(answer(vl, task, mine, choices, num_threads=num_threads), start=1):
            journal.add(result, hashes[result.id])
            if progress is not None:  # the others are taken to be as quick
                progress(min(len(done) + number * processes.world_size, len(samples)), len(samples))
    processes.wait()
    results = store.read(hashes, with_failed=True)
    return [results[sample.id] for sample in samples]


def settings_of(vl: QwenVL, task: Task, choices: Choices) -> dict[str, Any]:
    """Return all that decides the answers to given samples."""
    return {
        "task": task.name,
        "mode": task.mode,
        "model": vl.name,
        "weights": name_model(vl.model, with_adapters=True),
        "dtype": str(vl.model.dtype).removeprefix("torch."),
        "min_new_tokens": task.min_new_tokens,
        "max_new_tokens": task.max_new_tokens,
        "greedy": task.greedy,
        "top_p": task.top_p,
        "few_shot": choices.few_shot,
        "seed": choices.seed,
        "confidence": choices.confidence,
    }


# -- one process


class Pending(Protocol):
    """Something that the engine is working on."""

    def poll(self) -> bool: ...

    def cancel(self) -> None: ...


def answer(vl: QwenVL, task: Task, samples: Iterable[Sample], choices: Choices | None = None, *, num_threads: int = 4) -> Iterator[Result]:
    """Ask the samples and yield each result as soon as it is known, in the order in which they come.

    Raises: ConfigError if the checkpoint cannot be asked in this way, and what the model raises.
    """
    choices, rest = choices or Choices(), iter(samples)
    vl.engine.expect_many()
    max_flying = 2 * vl.engine.settings.max_batch  # so that a place that becomes free is filled at once
    coming: deque[tuple[Sample, list[Future[LoadedPicture]]]] = deque()
    flying: list[tuple[Sample, Pending]] = []
    loader = PictureLoader(vl, num_threads)
    try:
        while True:
            for sample in islice(rest, max(0, max_flying - len(coming))):
                coming.append((sample, [loader.load(path) for path in sample.pictures]))
            if not coming and not flying:
                return
            if len(flying) + min(ENCODE_AT_ONCE, len(coming)) <= max_flying:
                ready = take_ready(coming, may_wait=not flying)
                begun = begin_all(vl, task, ready, choices)
                flying += [(sample, each) for sample, each in begun if not isinstance(each, Result)]
                yield from (each for _, each in begun if isinstance(each, Result))
            if flying:
                vl.engine.step()
                over = [(sample, pending, outcome) for sample, pending in flying if (outcome := look_at(task, sample, pending)) is not None]
                if over:
                    gone = {id(pending) for _, pending, _ in over}
                    flying = [pair for pair in flying if id(pair[1]) not in gone]
                    yield from (outcome for _, _, outcome in over)
    finally:
        loader.close()
        for _, pending in flying:
            pending.cancel()


def take_ready(
    coming: "deque[tuple[Sample, list[Future[LoadedPicture]]]]", *, may_wait: bool
) -> list[tuple[Sample, list[LoadedPicture] | Exception]]:
    """Take the next samples whose pictures are decoded, a few; if there is nothing else to do, wait for those of the first."""
    taken: list[tuple[Sample, list[LoadedPicture] | Exception]] = []
    while coming and len(taken) < ENCODE_AT_ONCE and (may_wait and not taken or all(future.done() for future in coming[0][1])):
        sample, futures = coming.popleft()
        try:
            taken.append((sample, [future.result() for future in futures]))
        except OF_ONE_SAMPLE as error:
            taken.append((sample, error))
    return taken


def begin_all(
    vl: QwenVL, task: Task, ready: Sequence[tuple[Sample, list[LoadedPicture] | Exception]], choices: Choices
) -> list[tuple[Sample, Pending | Result]]:
    """Encode the pictures of several samples in one pass and hand the samples to the engine; a sample that cannot be asked has its result at once."""
    encoded = iter(encode_pictures(vl, [picture for _, pictures in ready if not isinstance(pictures, Exception) for picture in pictures]))
    begun: list[tuple[Sample, Pending | Result]] = []
    for sample, pictures in ready:
        if isinstance(pictures, Exception):
            begun.append((sample, failed(sample, pictures)))
            continue
        features = list(islice(encoded, len(pictures)))
        try:
            begun.append((sample, begin(vl, task, sample, features, choices)))
        except OF_ONE_SAMPLE as error:
            begun.append((sample, failed(sample, error)))
    return begun


def begin(vl: QwenVL, task: Task, sample: Sample, pictures: Sequence[Any], choices: Choices) -> Pending:
    """Hand one sample to the engine, in the way that its task is asked. Raises: PromptError, CapacityError, ConfigError."""
    if task.mode == "likelihood":
        candidates = [encode_prompt(vl.tokenizer, choice) for choice in sample.choices]
        return begin_choice(vl, encode_prompt(vl.tokenizer, sample.prompt), pictures, candidates)
    if task.mode == "generate":
        lengths: dict[str, Any] = {"min_new_tokens": task.min_new_tokens, "max_new_tokens": task.max_new_tokens}
        return begin_raw(vl, encode_prompt(vl.tokenizer, sample.prompt), pictures, confidence=choices.confidence, **lengths)
    return begin_raw(
        vl,
        encode_chat_prompt(vl, sample.prompt),
        pictures,
        stop_ids=chat_stop_ids(vl.tokenizer),
        confidence=choices.confidence,
        min_new_tokens=task.min_new_tokens,
        max_new_tokens=task.max_new_tokens,
        do_sample=False if task.greedy else True if task.top_p is not None else None,  # None: the checkpoint's own choice, as the release's `chat`
        top_p=task.top_p,
        seed=seed_of(sample, choices.seed),
    )


def look_at(task: Task, sample: Sample, pending: Any) -> Result | None:
    """Return a sample's result if it is known by now."""
    try:
        if not pending.poll():
            return None
    except OF_ONE_SAMPLE as error:
        return failed(sample, error)
    if isinstance(pending, Choice):
        return Result(id=sample.id, choice=pending.choice, choice_losses=tuple(round(loss, 6) for loss in pending.losses))
    written: RawAnswer = pending
    scores = written.box_scores
    confidences = None if scores is None else tuple(round(score.confidence, 4) for score in scores)
    text = written.text if task.mode == "generate" else written.tagged_text
    return Result(id=sample.id, answer=text, num_new_tokens=len(written.new_ids), confidences=confidences)


def failed(sample: Sample, error: Exception) -> Result:
    """Return the result of a sample that could not be asked."""
    return Result(id=sample.id, error=" ".join(str(error).split()))


def seed_of(sample: Sample, seed: int) -> int:
    """Return the seed of one sample's answer, which does not depend on what else is asked."""
    return int.from_bytes(hashlib.sha256(f"{seed} {sample.id}".encode("utf-8", "surrogatepass")).digest()[:4], "big")


class PictureLoader:
    """Decodes pictures in threads; one that was decoded lately is not decoded again."""

    def __init__(self, vl: QwenVL, num_threads: int) -> None:
        self._vl = vl
        self._pool = ThreadPoolExecutor(max(1, num_threads), thread_name_prefix="pictures")
        self._latest: OrderedDict[Path, Future[LoadedPicture]] = OrderedDict()

    def load(self, path: Path) -> Future[LoadedPicture]:
        """Begin to load a picture."""
        if path in self._latest:
            self._latest.move_to_end(path)
        else:
            self._latest[path] = self._pool.submit(load_picture, self._vl, path)
            if len(self._latest) > KEPT_PICTURES:
                self._latest.popitem(last=False)
        return self._latest[path]

    def close(self) -> None:
        """Stop loading."""
        self._pool.shutdown(wait=True, cancel_futures=True)
