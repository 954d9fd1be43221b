"""Scores from a judge: a language model behind any OpenAI-style endpoint, asked about each answer in two rounds with the answers swapped.

    judge = Judge(JudgeSettings(model="gpt-4"), api_key=key)
    results, counts = judge.judge_all(samples, results, folder)    # results with `rounds`

Every request and what came back is kept in `judge.jsonl`, so nothing is asked twice. A round that gives no two readable scores after a few tries is
left out and counted; no score is ever made up.

Source of words and settings: FACTS 9.4, TouchStone.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from qwen_vl.errors import CapacityError, ConfigError, DataError, cannot_write
from qwen_vl.evaluation.results import append_line, cut_half_line
from qwen_vl.evaluation.task import Result, Sample, answer_of

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

JUDGE = "judge.jsonl"
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
PROMPT = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user question and image description displayed "
    "above. AI assistants are provided with detailed image description and questions.\n"
    "Please rate the helpfulness, relevance, accuracy, comprehensiveness of their responses. Each assistant receives an overall score on a scale of "
    "1 to 10, where a higher score indicates better overall performance.\n"
    "Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, respectively. The two scores are "
    "separated by a space. In the subsequent line, please provide a comprehensive explanation of your evaluation, avoiding any potential bias and "
    "ensuring that the order in which the responses were presented does not affect your judgment."
)
LEAST, MOST = 1.0, 10.0  # scores
MAX_FAILURES_IN_A_ROW = 20  # rounds: then the endpoint is taken to be gone


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSettings:
    """Who judges, and how patiently it is asked."""

    model: str = "gpt-4"
    base_url: str | None = None  # None: OpenAI's own
    max_tries: int = 5  # of one round
    wait_s: float = 5.0  # between tries
    timeout_s: float = 60.0  # of one try
    num_parallel: int = 8

    def __post_init__(self) -> None:
        if self.max_tries < 1 or self.num_parallel < 1:
            raise ConfigError(f"max_tries={self.max_tries} and num_parallel={self.num_parallel} must be at least 1.")
        if not (0 <= self.wait_s < math.inf and 0 < self.timeout_s < math.inf):
            raise ConfigError(f"wait_s={self.wait_s} and timeout_s={self.timeout_s} must be seconds.")


@dataclass(slots=True)
class JudgeCounts:
    """What became of the rounds."""

    num_rounds: int = 0
    num_judged: int = 0
    num_cached: int = 0  # of those judged
    num_failed: int = 0  # without two scores after all tries; left out
    num_tries: int = 0  # requests that were sent
    timeout: int = 0  # tries that took too long
    refused: int = 0  # tries that ended in an error of the endpoint
    malformed: int = 0  # tries whose answer was not two scores

    def to_dict(self) -> dict[str, int]:
        """Return the counts that say something of the outcome: how often the endpoint was tried depends on what was known before."""
        return {"num_rounds": self.num_rounds, "num_judged": self.num_judged, "num_failed": self.num_failed}


class Judge:
    """Asks for scores. Threads share it."""

    def __init__(self, settings: JudgeSettings, *, api_key: str | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        """Args: api_key: of the endpoint; some need none. It is never written down."""
        self.settings, self._sleep = settings, sleep
        self._api_key = api_key
        self._lock = Lock()
        self._failures_in_a_row = 0
        self._is_stopped = False

    def judge_all(self, samples: Sequence[Sample], results: Sequence[Result], folder: Path) -> tuple[list[Result], JudgeCounts]:
        """Judge all answers and return the results with their rounds.

        Samples without an answer are not judged. Raises: ConfigError if `openai` is missing; CapacityError if the endpoint fails round after round.
        """
        client = self._connect()
        counts, self._failures_in_a_row, self._is_stopped = JudgeCounts(), 0, False
        asked = [
            (index, number, messages)
            for index, (sample, result) in enumerate(zip(samples, results, strict=True))
            if result.error is None
            for number, messages in enumerate(rounds_of(sample, answer_of(result)))
        ]
        counts.num_rounds = len(asked)
        cache = Cache(folder / JUDGE)
        with ThreadPoolExecutor(self.settings.num_parallel, thread_name_prefix="judge") as pool:
            futures = [pool.submit(self._round, client, cache, messages, counts) for _, _, messages in asked]
            try:
                scores = [future.result() for future in futures]
            except BaseException:
                self._is_stopped = True  # no round begins after this, not even one that was about to
                pool.shutdown(cancel_futures=True)
                raise
        rounds: dict[int, list[tuple[float, float]]] = {}
        for (index, number, _), pair in zip(asked, scores, strict=True):
            if pair is not None:  # the second round has the answers swapped
                rounds.setdefault(index, []).append(pair if number == 0 else (pair[1], pair[0]))
        return [replace(result, rounds=tuple(rounds.get(index, ()))) for index, result in enumerate(results)], counts

    def _connect(self) -> "OpenAI":
        try:
            from openai import OpenAI
        except ImportError:
            raise ConfigError('A judge is asked with the openai package, which is not installed: pip install "qwen-vl[eval]"') from None
        if self._api_key is None and self.settings.base_url is None:
            raise ConfigError("There is no key for the judge. Set OPENAI_API_KEY, or name an endpoint that needs none with --judge-url.")
        return OpenAI(api_key=self._api_key or "none", base_url=self.settings.base_url, timeout=self.settings.timeout_s, max_retries=0)

    def _round(self, client: "OpenAI", cache: "Cache", messages: list[dict[str, str]], counts: JudgeCounts) -> tuple[float, float] | None:
        """Return the scores of one round, from what is known or from the endpoint; None if it has none to give."""
        request = {"model": self.settings.model, "messages": messages, "temperature": 0, "stop": ["\n"]}
        known = cache.get(request)
        if known is not None:
            self._note(counts, judged=True, cached=True)
            return known
        for number in range(self.settings.max_tries):
            if number:
                self._sleep(self.settings.wait_s)
            if self._is_stopped:
                return None
            scores, reply, failure = self._try(client, request)
            cache.add(request, scores, reply, failure)
            with self._lock:
                counts.num_tries += 1
                if failure:
                    setattr(counts, failure, getattr(counts, failure) + 1)
            if scores is not None:
                self._note(counts, judged=True)
                return scores
        self._note(counts, judged=False)
        return None

    def _note(self, counts: JudgeCounts, *, judged: bool, cached: bool = False) -> None:
        """Count a round. Raises: CapacityError if it is one of too many that failed."""
        with self._lock:
            counts.num_judged += judged
            counts.num_cached += cached
            counts.num_failed += not judged
            self._failures_in_a_row = 0 if judged else self._failures_in_a_row + 1
            if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                self._is_stopped = True
                raise CapacityError(
                    f"The judge {self.settings.model} failed {self._failures_in_a_row} rounds in a row; {JUDGE} says how. "
                    "See that it answers and start again: what it has judged is not asked again."
                )

    def _try(self, client: "OpenAI", request: dict[str, Any]) -> tuple[tuple[float, float] | None, str, str | None]:
        """Ask once; return the scores, the reply or error in words, and the kind of failure."""
        from openai import APITimeoutError, AuthenticationError, NotFoundError, OpenAIError

        try:
            completion = client.chat.completions.create(**request)
            reply = (completion.choices[0].message.content or "") if completion.choices else ""
        except APITimeoutError as error:
            return None, str(error), "timeout"
        except (AuthenticationError, NotFoundError) as error:  # asking again would not help
            raise ConfigError(f"The judge refuses: {' '.join(str(error).split())[:200]} Check --judge-model, --judge-url and the key.") from None
        except (OpenAIError, ValueError) as error:  # ValueError: an answer that is no JSON
            return None, f"{type(error).__name__}: {error}", "refused"
        scores = read_scores(reply)
        return scores, reply, None if scores else "malformed"


class Cache:
    """What the judge was asked and said, one line for each try. Only answers with two scores are taken for known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._known: dict[str, tuple[float, float]] = {}
        if path.exists():
            cut_half_line(path)
            with path.open(encoding="utf-8", newline="\n") as file:
                for number, line in enumerate(file, start=1):
                    self._read(line, number)

    def _read(self, line: str, number: int) -> None:
        try:
            record = json.loads(line)
            if record["failure"] is None:
                scores = read_scores(record["reply"])
                if scores is None:
                    raise ValueError
                self._known[str(record["request_hash"])] = scores
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{self.path} line {number} is no record of a judge. Delete the line, and it is asked again.") from None

    def get(self, request: dict[str, Any]) -> tuple[float, float] | None:
        """Return the scores of a request that was answered before."""
        return self._known.get(hash_request(request))

    def add(self, request: dict[str, Any], scores: tuple[float, float] | None, reply: str, failure: str | None) -> None:
        """Write down a try. Raises: DiskError, ConfigError."""
        digest = hash_request(request)
        line = json.dumps({"request_hash": digest, "failure": failure, "reply": reply, "request": request}, ensure_ascii=False)
        with self._lock:
            try:
                file = self.path.open("ab", buffering=0)
            except OSError as error:
                raise cannot_write(self.path, error, "Name another folder with --out.") from None
            with file:
                append_line(file, self.path, line)
            if scores is not None:
                self._known[digest] = scores


def hash_request(request: dict[str, Any]) -> str:
    """Return a digest of all that is sent."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def rounds_of(sample: Sample, answer: str) -> list[list[dict[str, str]]]:
    """Return the messages of both rounds: the reference answer first, then the answer first. Raises: DataError if the sample lacks a text."""
    try:
        description, question, reference = (sample.extra[name] for name in ("human_annotation", "question", "gpt4_ha_answer"))
    except KeyError as error:
        raise DataError(f"Sample {sample.id} has no {error.args[0]}, which the judge reads. Prepare the task again.") from None
    return [format_messages(description, question, *pair) for pair in ((reference, answer), (answer, reference))]


def format_messages(description: str, question: str, first: str, second: str) -> list[dict[str, str]]:
    """Return what the judge is told. Source: FACTS 9.4, literally."""
    user = (
        f"[Detailed Image Description]\n{description}\n\n[Question]\n{question}\n\n"
        f"[The Start of Assistant 1's Answer]\n{first}\n\n[The End of Assistant 1's Answer]\n\n"
        f"[The Start of Assistant 2's Answer]\n{second}\n\n[The End of Assistant 2's Answer]\n\n"
        f"[System]\n{PROMPT}\n\n"
    )
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def read_scores(reply: str) -> tuple[float, float] | None:
    """Return the two scores in a reply's first line; None unless it is two numbers from 1 to 10 and nothing else."""
    words = reply.strip().split("\n", 1)[0].replace(",", " ").split()
    if len(words) != 2:
        return None
    try:
        first, second = map(float, words)
    except ValueError:
        return None
    return (first, second) if all(LEAST <= score <= MOST for score in (first, second)) else None
