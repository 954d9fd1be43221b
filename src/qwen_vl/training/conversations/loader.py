"""The steps of a run: samples in the order of the plan, with their pictures, read ahead by worker threads.

    dataset = ConversationDataset(read_conversations(path), tokenizer, max_length=2048, resolution=Resolution(image_size=448))
    stream = ConversationStream(dataset, seed=1, micro_batch_size=2, accumulation=8, num_workers=4)
    for step, batches in stream.steps_from(0, stream.steps_per_epoch): ...

What a step holds depends on the arguments alone: not on the number of workers, nor on where a run was resumed. The workers are threads, because
reading, decoding and resizing a picture leave the interpreter free: they cost no second copy of the data, no shared memory that a container may
lack, and none of them can die unnoticed.
"""

import logging
from array import array
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import torch

from qwen_vl.errors import CapacityError, ConfigError, DataError, ImageError
from qwen_vl.processing.images import join_pixel_values, load_pixel_values
from qwen_vl.processing.resolution import Resolution
from qwen_vl.processing.tokenization import QWenTokenizer
from qwen_vl.prompt.content import Text, split_pictures

from ..loss import IGNORED
from .collate import Batch, collate
from .conversation import Conversation
from .encoding import Counts, Form, Long, Sample, encode_conversation
from .features import FeatureCache, KeyedPicture
from .plan import FILLER, EpochPlan, Step

OnBadPicture = Literal["stop", "skip"]
Indices = tuple[int, ...]  # of the samples of a micro-batch
BYTES_PER_TOKEN = 4  # of text, roughly: for the lengths of conversations that are not encoded yet
TOKENS_PER_TURN = 5
READ_AHEAD = 2  # micro-batches for each worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """What was left out while a micro-batch was made: a field of `Counts`, the record's number and why."""

    count: str
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Made:
    """A micro-batch, and what happened on the way."""

    batch: Batch
    events: tuple[Event, ...]


class ConversationDataset:
    """Conversations as samples; an item is the micro-batch of a tuple of indices.

    A sample that turns out to be unusable after the plan was made (its picture cannot be read; it is too long, if lazy) keeps its place as a row
    without labels, so that the order of all others stays.

    Args:
        max_length, form, long, allow_special_tokens: see `encode_conversation`.
        resolution: at which the model sees pictures; None for a text-only model.
        lazy: encode a conversation when it first comes up, not all of them now. Lengths are then estimates, so padding and order differ.
        on_bad_picture: "stop" ends the run at a picture that cannot be read; "skip" goes on without its sample.
        features: keeps what a frozen tower makes of pictures; pictures then come as KeyedPicture.
    Attributes:
        counts: what became of the records so far.
        lengths: tokens of each sample.
    Raises: DataError naming the record's number for text that cannot be encoded, or if no sample is left.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        tokenizer: QWenTokenizer,
        *,
        max_length: int,
        resolution: Resolution | None,
        form: Form = "chatml",
        lazy: bool = False,
        long: Long = "skip",
        allow_special_tokens: bool = False,
        on_bad_picture: OnBadPicture = "stop",
        features: FeatureCache | None = None,
    ) -> None:
        self.tokenizer, self.resolution, self.features = tokenizer, resolution, features
        self.max_length, self.form, self.long, self.allow_special_tokens = max_length, form, long, allow_special_tokens
        self.on_bad_picture = on_bad_picture
        self.counts = Counts(records=len(conversations))
        self.conversations: Sequence[Conversation] = conversations if lazy else ()
        self.encoded: dict[int, Sample | None] = {}
        if lazy:
            slots = tokenizer.image_slots + 2
            self.lengths = [min(max_length, _estimate_length(conversation, slots)) for conversation in conversations]
        else:
            samples = [sample for each in conversations if (sample := self._encode(each, self.counts)) is not None]
            self.encoded = dict(enumerate(samples))
            self.lengths = [len(sample.input_ids) for sample in samples]
        if not self.lengths:
            raise DataError(f"No sample is left to learn from: {self.counts}. Raise max_length, or correct the data.")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, indices: Indices) -> Made:
        """Make a micro-batch. Raises: DataError naming the record of a bad picture, if that stops the run."""
        rows: list[Sample] = []
        pictures: list[torch.Tensor | KeyedPicture] = []
        events: list[Event] = []
        for index in indices:
            sample = None if index == FILLER else self._usable(index, events)
            try:
                pictures += [] if sample is None else self._load(sample)
            except ImageError as error:
                assert sample is not None
                if self.on_bad_picture == "stop":
                    raise DataError(f"Record {sample.number}: {error}") from None
                events.append(Event("skipped_bad_picture", sample.number, f"skipped. {error}"))
                sample = None
            rows.append(sample or self._blank())
        loaded = [picture for picture in pictures if isinstance(picture, torch.Tensor)]  # all of them, or none where features are kept
        pixel_values = join_pixel_values(loaded) if loaded else None
        batch = collate(rows, pad_id=self.tokenizer.eod_id, pixel_values=pixel_values)
        if self.features is not None:
            batch["pictures"] = pictures
        return Made(batch, tuple(events))

    def _usable(self, index: int, events: list[Event]) -> Sample | None:
        """Return a sample, encoded now if it was not; note why there is none."""
        if index not in self.encoded:
            conversation, counts = self.conversations[index], Counts()
            self.encoded[index] = self._encode(conversation, counts)
            events += [Event(name, conversation.number, name.replace("_", " ")) for name, number in counts.to_dict().items() if number]
        return self.encoded[index]

    def _load(self, sample: Sample) -> list[torch.Tensor | KeyedPicture]:
        """Load a sample's pictures, one after the other: only their small forms are held together."""
        if not sample.pictures:
            return []
        if self.resolution is None:
            raise DataError(f"Record {sample.number} shows a picture, but this is a text-only model. Leave such records out.")
        if self.features is None:
            return [load_pixel_values([picture], self.resolution)[0] for picture in sample.pictures]
        return [KeyedPicture.of(picture, self.resolution, self.features.holds) for picture in sample.pictures]

    def _blank(self) -> Sample:
        """Return the row that stands for no sample."""
        ids = [self.tokenizer.eod_id] * 2
        return Sample(number=0, id="", input_ids=ids, labels=[IGNORED] * 2, pictures=())

    def _encode(self, conversation: Conversation, counts: Counts) -> Sample | None:
        """Encode a conversation, in little memory."""
        sample = encode_conversation(
            self.tokenizer,
            conversation,
            self.max_length,
            form=self.form,
            long=self.long,
            allow_special_tokens=self.allow_special_tokens,
            counts=counts,
        )
        return None if sample is None else replace(sample, input_ids=array("i", sample.input_ids), labels=array("i", sample.labels))


def _estimate_length(conversation: Conversation, span: int) -> int:
    """Return roughly how many tokens a conversation has."""
    texts = [conversation.system or "", *(turn.text for turn in conversation.turns)]
    num_bytes = sum(len(str(piece).encode("utf-8", "replace")) for text in texts for piece in split_pictures(text).pieces if isinstance(piece, Text))
    return num_bytes // BYTES_PER_TOKEN + TOKENS_PER_TURN * len(texts) + span * len(conversation.pictures)


class ConversationStream:
    """The steps of a run for one rank, epoch after epoch.

    Args:
        seed, micro_batch_size, accumulation, world_size: see EpochPlan.
        rank: of this process, below world_size.
        num_workers: threads that load pictures ahead; 0 loads them when they are needed.
    Attributes:
        counts: the dataset's, and what was left out since.
        steps_per_epoch: number of steps that see every sample once.
    """

    def __init__(
        self,
        dataset: ConversationDataset,
        *,
        seed: int,
        micro_batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank={rank} must be at least 0 and below world_size={world_size}.")
        if num_workers < 0:
            raise ConfigError(f"num_workers={num_workers} must not be negative.")
        self.dataset, self.rank, self.num_workers = dataset, rank, num_workers
        self.counts = replace(dataset.counts)
        self._seen: set[tuple[str, int]] = set()  # events that are counted
        self._plan_arguments = {"seed": seed, "micro_batch_size": micro_batch_size, "accumulation": accumulation, "world_size": world_size}
        self._plans: dict[int, EpochPlan] = {}  # of the epoch that is run and of the one that is read ahead
        self.steps_per_epoch = len(self._plan(0).steps)

    def _plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch; the last two asked for are kept."""
        if epoch not in self._plans:
            latest = dict(list(self._plans.items())[-1:])
            self._plans = latest | {epoch: EpochPlan(self.dataset.lengths, epoch=epoch, **self._plan_arguments)}
        return self._plans[epoch]

    def step_indices(self, step: int) -> Step:
        """Return which samples a step of the run sees, by rank and micro-batch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._plan(epoch).steps[within]

    def steps_from(self, first_step: int, last_step: int | None = None) -> Iterator[tuple[int, list[Batch]]]:
        """Yield (step, micro-batches of this rank) from first_step on, counted from 0; without end unless last_step, exclusive, is given.

        Raises: DataError naming the record of a picture that cannot be read, if that stops the run; CapacityError if the memory is full.
        """
        with closing(self._read_ahead(self._order(first_step, last_step))) as made:
            step = first_step
            while last_step is None or step < last_step:
                yield step, [self._finish(next(made)) for _ in self.step_indices(step)[self.rank]]
                step += 1

    def _order(self, first_step: int, last_step: int | None) -> Iterator[Indices]:
        """Yield this rank's micro-batches."""
        step = first_step
        while last_step is None or step < last_step:
            yield from (tuple(indices) for indices in self.step_indices(step)[self.rank])
            step += 1

    def _read_ahead(self, order: Iterator[Indices]) -> Generator[Made, None, None]:
        """Yield the micro-batches in order, made by the workers."""
        if not self.num_workers:
            yield from map(self._make, order)
            return
        waiting: deque[Future[Made]] = deque()
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="pictures")
        try:
            while True:
                for indices in islice(order, self.num_workers * READ_AHEAD - len(waiting)):
                    waiting.append(pool.submit(self._make, indices))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _make(self, indices: Indices) -> Made:
        """Make a micro-batch. Raises: CapacityError if the memory is full."""
        try:
            return self.dataset[indices]
        except MemoryError:
            raise CapacityError("There is not enough memory to load the pictures of a batch. Use smaller batches or fewer workers.") from None

    def _finish(self, made: Made) -> Batch:
        """Count what was left out, encode pictures where features are kept, and return the batch."""
        for event in made.events:
            if (event.count, event.number) not in self._seen:
                self._seen.add((event.count, event.number))
                setattr(self.counts, event.count, getattr(self.counts, event.count) + 1)
                logger.warning("Record %d: %s", event.number, event.reason)
        pictures = made.batch.pop("pictures", None)
        if pictures:
            assert self.dataset.features is not None
            made.batch["image_features"] = self.dataset.features.encode(pictures)
        return made.batch
