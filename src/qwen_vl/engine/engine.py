"""The engine: one model, many requests, one round of work after the other.

A round lets waiting requests in, reads a chunk of prompts, and writes one token for each request whose prompt has been read; so a long prompt holds
nobody up for longer than a chunk, and short ones are read together. Whoever wants a token does the work (`Handle`), or a thread of the engine does it
(`start`).
"""

import itertools
import logging
import threading
from collections import defaultdict, deque
from functools import partial

import torch
from torch import Tensor

from qwen_vl.errors import CapacityError, ConfigError, is_out_of_memory
from qwen_vl.modeling.model import QWenLMHeadModel

from .features import FeatureCache
from .halves import HalfCopies
from .intake import make_job, num_tokens_of
from .kv_cache import SlotCache
from .passes import Passes, failing_alone
from .prefixes import PrefixCache, digest_blocks
from .request import CANCELLED, Handle, Request
from .scheduler import Job, Scheduler
from .settings import MIB, EngineSettings, EngineStatistics

logger = logging.getLogger(__name__)

COPIES_PAY_AFTER = 150  # tokens: making 16-bit copies of all weights takes about as long as writing these, reading the copies half as long


class Engine:
    """Runs requests on a model; their greedy tokens are those of `generate`, whatever else is in flight.

    Args:
        model: in evaluation mode; with adapters or packed layers as it stands. The caches believe that it stays as it is: see `forget` and
            `forget_if_changed`.
    """

    def __init__(self, model: QWenLMHeadModel, settings: EngineSettings | None = None) -> None:
        self.model, self.settings = model, settings or EngineSettings.suited_to(model)
        self.slots = SlotCache(model, self.settings.kv_bytes)
        self.features = FeatureCache(self.settings.feature_bytes, self._see)
        self._prefixes = PrefixCache(self.settings.prefix_bytes, self.settings.block_tokens)
        self._halves = HalfCopies(model, self.settings.half_bytes, self._still_to_take)
        if self.settings.half_bytes:
            self._halves.copy_all()
        is_compiled = model.device.type == "cuda" if self.settings.compile is None else self.settings.compile
        self._num_tokens = num_tokens_of(model)
        self._passes = Passes(model, self.slots, self._num_tokens, compile=is_compiled)
        self._scheduler = Scheduler(self.settings.max_batch, self.slots.fits)
        self._arrivals: deque[Job] = deque()
        # Without the bookkeeping of versions and views a step of 100 M parameters on a CPU is 2 % quicker; compilers are spared the difference.
        self._mode = torch.no_grad if self._passes.is_compiled else torch.inference_mode
        self._lock = threading.Lock()  # whoever holds it does the work
        self._wake = threading.Event()
        self._worker: threading.Thread | None = None
        self._is_closed = False
        self._stamp = stamp_of_weights(model)
        self.generation = 0  # of the weights: whatever was computed with others is of no use to later requests
        self._is_cancelled = False  # some request, which has not been noticed yet
        self._num_arrived = self._num_rounds = self._num_prompt_tokens = self._num_new_tokens = self._num_preempted = 0

    def submit(self, request: Request) -> Handle:
        """Take a request in, from any thread, and return its handle at once.

        Raises: CapacityError if it can never fit; ShapeError if pictures and spans do not match; ConfigError for an empty prompt or a closed engine.
        """
        job = make_job(self.model, request, Handle(self), self._num_tokens, self.generation)
        if not self.slots.fits(1, job.worst_length):
            needed = job.worst_length * self.slots.position_bytes
            raise CapacityError(
                f"{job.num_prompt} tokens and {request.sampling.max_new_tokens} new ones need {needed / MIB:.0f} MiB for keys and values, but "
                f"{self.settings.kv_bytes / MIB:.0f} MiB are allowed. Shorten the prompt, lower max_new_tokens or raise kv_bytes."
            )
        self._arrivals.append(job)
        if self._is_closed:
            with self._lock, self._mode():
                self._end_all()
            raise ConfigError("the engine is closed; make a new one")
        self._wake.set()
        return job.handle

    @torch.no_grad()
    def _see(self, pictures: list[Tensor]) -> Tensor:
        return self.model.get_image_features(pictures)

    # -- doing the work

    @property
    def is_working(self) -> bool:
        """Whether a thread of the engine does the work."""
        return self._worker is not None

    @property
    def is_closed(self) -> bool:
        """Whether it takes nothing more: it was closed, or its thread has died of a bug."""
        return self._is_closed

    def start(self) -> None:
        """Let a thread do the work from now on, until `close`."""
        if self._worker is None and not self._is_closed:
            self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
            self._worker.start()

    def _work(self) -> None:
        try:
            while not self._is_closed:
                self._wake.clear()
                if self._is_closed:  # since the last look: what woke this thread is no longer set
                    break
                if not self.step():
                    self._wake.wait()
        except BaseException as error:  # noqa: BLE001  a bug, which whoever waits raises: nobody may wait for ever
            logger.error("the engine has stopped", exc_info=error)
            self._is_closed = True
            with self._lock, self._mode():
                self._end_all(error)

    def close(self) -> None:
        """Stop, end all requests as cancelled and give the memory back. A closed engine takes nothing more."""
        self._is_closed = True
        self._wake.set()
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join()
        with self._lock, self._mode():
            self._end_all()
            self._worker = None
            self.slots.release()
            self._prefixes.clear()
            self.features.clear()
            self._halves.drop()
            self._passes.close()

    def step(self) -> bool:
        """Do one round and return whether there is more to do. One thread at a time; others wait here."""
        with self._lock, self._mode():
            self._reap()
            self._make_way()
            self._num_rounds += 1
            self._read_prompts()
            self._write_tokens()
            has_more = not self._scheduler.is_idle or bool(self._arrivals)
        if self._is_cancelled:  # meanwhile, by a thread that could not work then; this may have been the last round
            self.notice_cancelled()
        return has_more

    def notice_cancelled(self) -> None:
        """Free what cancelled requests hold: now if nobody works, else with the next round, or after this one."""
        self._is_cancelled = True
        self._wake.set()
        if not self.is_working and self._lock.acquire(blocking=False):
            try:
                with self._mode():
                    self._reap()
            finally:
                self._lock.release()

    # -- who is in

    def _reap(self) -> None:
        """Take in what has arrived, and put out what was cancelled."""
        self._is_cancelled = False
        while self._arrivals:
            job = self._arrivals.popleft()
            job.arrival, self._num_arrived = self._num_arrived, self._num_arrived + 1
            self._scheduler.add(job)
        for job in itertools.chain(self._scheduler.waiting, self._scheduler.active):
            if job.handle.is_cancelled and not job.has_ended:
                job.reason = CANCELLED
        self._remove_ended()

    def _make_way(self) -> None:
        """Let requests wait again where one of higher priority needs their places; what was read and written of them is kept as a prefix."""
        for job in self._scheduler.victims():
            self._keep_prefix(job)
            self._scheduler.put_back(job)
            job.leave_row()
            self._num_preempted += 1
        self._close_gaps()

    def _remove_ended(self) -> None:
        """Let requests leave that have ended: keep their keys and values for later ones, close the gaps in the rows and tell their handles."""
        gone = self._scheduler.remove_ended()
        for job in gone:
            if job.error is None and not self._is_closed and job.row >= 0:
                self._keep_prefix(job)
            job.leave_row()
        self._close_gaps()
        for job in gone:
            job.handle.end(job.reason if job.error is None else None, job.error)

    def _close_gaps(self) -> None:
        """Let no row between be empty, and nothing stay in a row that is not its request's; a failed pass may have written beyond the end."""
        for job, row in self._scheduler.moves():
            self.slots.move(job.row, row, job.num_cached)
            job.row = row
        self._scheduler.sort_rows()
        held = {job.row: job.num_cached for job in self._scheduler.active}
        for row in range(self.slots.num_rows):
            self.slots.wipe(row, held.get(row, 0))

    def _end_all(self, error: BaseException | None = None) -> None:
        self._reap()
        for job in [*self._scheduler.waiting, *self._scheduler.active]:
            job.reason, job.error = CANCELLED, error
        self._remove_ended()

    # -- reading prompts

    def _read_prompts(self) -> None:
        """Read up to `chunk_tokens` of prompts, in waves: one that begins like another waits a wave, and then finds its beginning in the cache."""
        budget = self.settings.chunk_tokens
        while wave := self._next_wave(budget):
            budget -= sum(job.read_to - job.num_cached for job in wave)
            for _, jobs in itertools.groupby(wave, key=lambda job: job.level):
                for job, logits, best in self._passes.outcomes(list(jobs), self._passes.read):
                    self._end_chunk(job, logits, best)
            self._remove_ended()

    def _next_wave(self, budget: int) -> list[Job]:
        """Return the jobs whose prompts are read next, with the ends of their chunks: those that are in, then as many as may come in."""
        wave, coming, unread = list[Job](), set[bytes](), list(self._scheduler.reading)
        while budget > 0:
            job = unread.pop(0) if unread else self._scheduler.admit(partial(self._is_coming, coming=coming))
            if job is None:
                break
            is_begun = job.embeds is not None and job.embeds.shape[1] == len(job.ids)  # Ctrl-C may have come between
            if not is_begun and not self._begin(job):
                continue
            job.read_to = min(job.num_cached + budget, len(job.ids))
            budget -= job.read_to - job.num_cached
            coming.update(self._prompt_digests(job)[job.num_cached // self.settings.block_tokens :])
            wave.append(job)
        return wave

    def _is_coming(self, job: Job, coming: set[bytes]) -> bool:
        """Tell whether the first block that the prefix cache lacks of a prompt is among those that are being read."""
        digests = self._prompt_digests(job) if coming else []
        known = self._prefixes.num_known(digests)
        return known < len(digests) and digests[known] in coming

    def _begin(self, job: Job) -> bool:
        """Fill a request's row with what is known of its beginning and embed the rest; if that fails the request has failed, and nobody else."""
        with failing_alone(job):
            self._fill_row(job)
        if job.error is not None:
            self._remove_ended()
        return job.error is None

    def _fill_row(self, job: Job) -> None:
        active = self._scheduler.active
        used = [each.num_cached for each in active if each is not job]
        self.slots.reserve(len(active), max(each.worst_length for each in active), used)
        if self._prefixes.is_on:
            job.num_cached = self.slots.write(job.row, self._prefixes.match(self._prompt_digests(job), len(job.ids)))
            if not job.was_put_back:  # else it may have found what it had read itself
                job.handle.num_cached_tokens = job.num_cached
        features = [picture.features.to(self.model.device) for picture in job.request.pictures]
        ids = torch.tensor([job.ids], device=self.model.device)
        embeds = self.model.transformer.embed(ids[:, : job.num_prompt], torch.stack(features) if features else None)
        if job.sampler.generated:  # it was put back: there is no picture in what it wrote
            embeds = torch.cat((embeds, self.model.transformer.embed(ids[:, job.num_prompt :])), dim=1)
        job.embeds = embeds

    def _end_chunk(self, job: Job, logits: Tensor, best: int) -> None:
        """Note what was read of a prompt; after the last of it, choose the next token."""
        self._num_prompt_tokens += job.read_to - job.num_cached
        if job.read_to < len(job.ids):
            job.num_cached = job.read_to
        elif self._choose(job, logits, best, job.read_to):
            job.embeds = job.digests = None
            self._scheduler.begin_writing(job)
            self._keep_prefix(job)  # others may begin alike while this one is still written

    # -- writing tokens

    def _write_tokens(self) -> None:
        """Choose the next token of each request that writes."""
        jobs = list(self._scheduler.writing)
        write = partial(self._passes.write, num_writing=len(jobs))
        for job, logits, best in self._passes.outcomes(jobs, write) if jobs else ():
            self._choose(job, logits, best, job.num_cached + 1)
        self._remove_ended()  # only now: leaving moves rows
        if self._num_new_tokens >= COPIES_PAY_AFTER and self._may_copy():
            self._halves.copy_next()

    def _choose(self, job: Job, logits: Tensor, best: int, num_cached: int) -> bool:
        """Choose a job's next token and hand it over; a caller's constraint or processor may raise anything, which is that job's failure.

        Args: best: the most likely token; num_cached: positions in the cache now.
        """
        token = best
        if not job.sampler.is_plain:
            with failing_alone(job):
                token = job.sampler.choose(logits)
            if job.error is not None:
                return False
        self._num_new_tokens += 1
        job.num_cached = num_cached  # only now: a round that Ctrl-C breaks off is done again as if it had not begun
        job.reason = job.sampler.accept(token)
        job.ids.append(token)
        job.handle.put(token)
        return True

    # -- the caches

    def _prompt_digests(self, job: Job) -> list[bytes]:
        """Return the digests of the blocks that a job may find in the prefix cache; its last token is always read, as its logits are wanted."""
        if job.digests is None:
            job.digests = self._digests(job, job.ids[:-1]) if self._prefixes.is_on else []
        return job.digests

    def _digests(self, job: Job, ids: list[int]) -> list[bytes]:
        return digest_blocks(ids, job.spans, job.level, self.settings.block_tokens, job.request.salt)

    def _keep_prefix(self, job: Job) -> None:
        if not self._prefixes.is_on or job.generation != self.generation:
            return
        digests = self._digests(job, job.ids[: job.num_cached])
        try:
            self._prefixes.store(digests, partial(self.slots.read, job.row), self.slots.position_bytes)
        except Exception as error:  # keeping less is no failure
            if not is_out_of_memory(error):
                raise
            logger.warning("the memory does not suffice for the prefix cache, which is emptied; lower prefix_bytes")
            self._prefixes.clear()

    def expect_many(self) -> None:
        """Prepare for many requests, as a server, a batch or an evaluation has them.

        On a CPU exact 16-bit copies are made of those float32 weights that have one, in the memory that requests and caches leave, unless
        `half_bytes` says how much. Otherwise they are made one by one between tokens, once so many have been written that they would have paid.
        """
        with self._lock:
            if self._may_copy():
                self._halves.copy_all()

    def _still_to_take(self) -> int:
        """Return the bytes that requests and caches may take beside what they have."""
        used = self.slots.num_bytes + self._prefixes.statistics().num_bytes + self.features.statistics().num_bytes
        return self.settings.kv_bytes + self.settings.prefix_bytes + self.settings.feature_bytes - used

    def _may_copy(self) -> bool:
        """Tell whether copies of weights are the engine's own choice."""
        return self.settings.half_bytes is None and self.model.device.type == "cpu" and not self._is_closed

    def forget(self) -> None:
        """Empty the prefix and feature caches: something changed the model's answers. Weights that have changed are copied again."""
        with self._lock:
            self.generation += 1
            self._prefixes.clear()
            self.features.clear()
            self._halves.refresh()
            self._passes.reset()

    def forget_if_changed(self) -> None:
        """Empty the caches if the model has changed since they were filled, see `stamp_of_weights`; takes milliseconds for a large model."""
        stamp = stamp_of_weights(self.model)
        if stamp != self._stamp:
            self._stamp = stamp
            self.forget()

    def statistics(self) -> EngineStatistics:
        """Return what the engine holds and has done; from any thread, without waiting."""
        return EngineStatistics(
            num_waiting=len(self._scheduler.waiting) + len(self._arrivals),
            num_reading=len(self._scheduler.reading),
            num_writing=len(self._scheduler.writing),
            num_rounds=self._num_rounds,
            num_prompt_tokens=self._num_prompt_tokens,
            num_new_tokens=self._num_new_tokens,
            num_preempted=self._num_preempted,
            kv_bytes=self.slots.num_bytes,
            half_bytes=self._halves.num_bytes,
            is_compiled=self._passes.is_compiled,
            prefixes=self._prefixes.statistics(),
            features=self.features.statistics(),
        )


@torch.no_grad()
def stamp_of_weights(model: QWenLMHeadModel) -> int:
    """Return a number that changes when a tensor of the model is replaced or written to, or an adapter is switched, merged or scaled.

    What is written to `tensor.data`, as averages of weights are, leaves no trace but the numbers, of which the first is looked at.
    """
    tensors = list(itertools.chain(model.parameters(), model.buffers()))
    traces = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
    firsts = defaultdict[tuple[torch.device, torch.dtype], list[Tensor]](list)
    for tensor in tensors:
        if tensor.numel():
            firsts[tensor.device, tensor.dtype].append(tensor.as_strided((1,), (1,)))
    numbers = [bytes(torch.cat(each).view(torch.uint8).tolist()) for each in firsts.values()]  # as bytes: no NaN is equal to itself
    adapters = [
        (tuple(layer.active_adapters), layer.disable_adapters, tuple(layer.merged_adapters), tuple(layer.scaling.items()))
        for layer in model.modules()
        if "merged_adapters" in vars(layer)  # PEFT's
    ]
    return hash((*traces, *numbers, *adapters))
