"""What does the server add? Four clients stream from it and from the engine in process (C8), and from it with its guards taken away.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_serve --out benchmarks/results
    OMP_NUM_THREADS=2 python -m benchmarks.bench_serve --shape A --what engine --tokens 32 --out benchmarks/results

    engine    four threads read from `QwenVL.stream`
    server    four clients read server-sent events from `qwen-vl serve`, on connections that they keep
    guards    the same server with and without everything that protects it (benchmarks/unguarded.py), one question in two with a picture

Each side answers the same questions, greedy, with the same number of tokens. The clients run in this process and take their part of the machine.
Goals: server / engine >= 0.95 in tokens/s, the first token at most 10 ms later, guards at most 3 % of tokens/s.

What a token costs the server does not grow with the model: with nano, whose tokens take a millisecond or two, it shows most. `--shape` takes a model
of random weights instead, of the shape that benchmarks/bench_decode.py gives that name, with nano's tokenizer.
"""

import argparse
import http.client
import io
import json
import random
import shutil
import statistics
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.bench_decode import SHAPES, sizes_of
from benchmarks.measure import CONTROL, finish, is_void, measure_rounds, ratios, summarize
from benchmarks.served import KEY, Served
from qwen_vl.api import QwenVL
from qwen_vl.api.loading import BUNDLED
from qwen_vl.modeling.configuration import QWenConfig
from qwen_vl.modeling.model import QWenLMHeadModel

GOAL_SPEED, GOAL_FIRST_MS, GOAL_GUARDS = 0.95, 10.0, 0.97
WORDS = ("dog", "sea", "house", "red", "blue", "boat", "tree", "bird")
Ask = Callable[[int], float]  # a question's number to the seconds until its first text


def write_checkpoint(shape: str, folder: Path) -> Path:
    """Write a checkpoint of random bfloat16 weights, with nano's tokenizer, and return its folder."""
    config = QWenConfig.from_pretrained(BUNDLED)
    sizes = sizes_of(shape)
    num_slots = {"n_queries": config.image_slots}  # as many as nano's tokenizer writes for a picture
    config.update({**sizes, "visual": {**config.visual, **sizes["visual"], **num_slots}})
    torch.manual_seed(0)
    QWenLMHeadModel(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("qwen.tiktoken", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(BUNDLED / name, folder)
    return folder


def question(number: int) -> str:
    """Return a question unlike the others, so that no prefix is known."""
    return f"{number}: tell me about {' and '.join(random.Random(number).choices(WORDS, k=12))}."


def picture(number: int) -> Image.Image:
    """Return a picture unlike the others."""
    return Image.frombytes("RGB", (64, 48), random.Random(number).randbytes(64 * 48 * 3)).resize((640, 480))


def run_clients(ask: Ask, numbers: Sequence[int], num_clients: int) -> list[float]:
    """Ask all questions, so many at once; return the seconds until each first text."""
    waiting, lock, found = iter(numbers), threading.Lock(), []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                with lock:
                    number = next(waiting, None)
                if number is None:
                    return
                seconds = ask(number)
                with lock:
                    found.append(seconds)
        except Exception as error:  # noqa: BLE001  raised again below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


class Client:
    """A connection to a server for each thread. `texts` are the answers, by their questions' numbers."""

    def __init__(self, server: Served, model: str, num_tokens: int, shows_pictures: bool) -> None:
        self.server, self.model, self.num_tokens, self.shows_pictures = server, model, num_tokens, shows_pictures
        self.texts: dict[int, str] = {}
        self._own = threading.local()

    def ask(self, number: int) -> float:
        """Ask a question, read the whole answer, and return the seconds until its first text."""
        content: Any = question(number)
        if self.shows_pictures and number % 2:
            file = io.BytesIO()
            picture(number).save(file, "JPEG")
            url = "data:image/jpeg;base64," + b64encode(file.getvalue()).decode()
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": content}]
        fields = {"model": self.model, "messages": [{"role": "user", "content": content}], "stream": True, "temperature": 0}
        fields |= {"max_tokens": self.num_tokens, "min_tokens": self.num_tokens, "stream_options": {"include_usage": True}}
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection(*self.server.place, timeout=600)
        connection = self._own.connection
        begin = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(fields), {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"})
        answer = connection.getresponse()
        first, num_tokens, text = None, 0, ""
        while line := answer.readline():
            if not line.startswith(b"data: {"):
                continue
            document = json.loads(line[6:])
            if "error" in document:
                raise RuntimeError(f"the server failed: {document}")
            text += "".join(choice["delta"].get("content") or "" for choice in document["choices"])
            if first is None and text:
                first = time.perf_counter() - begin
            num_tokens = (document.get("usage") or {}).get("completion_tokens", num_tokens)
        if first is None or num_tokens != self.num_tokens:
            raise RuntimeError(f"status {answer.status}, {num_tokens} tokens, not {self.num_tokens}")
        self.texts[number] = text
        return first


class InProcess:
    """The engine in this process, in a thread of its own as in the server."""

    def __init__(self, folder: Path, num_tokens: int) -> None:
        self.vl, self.num_tokens = QwenVL.load(folder), num_tokens
        self.vl.engine.expect_many()  # as the server does: both sides read the same copies of weights
        self.vl.engine.start()

    def ask(self, number: int) -> float:
        """Ask a question, read the whole answer, and return the seconds until its first text."""
        begin, first = time.perf_counter(), None
        stream = self.vl.stream(None, question(number), temperature=0, max_new_tokens=self.num_tokens, min_new_tokens=self.num_tokens)
        for _ in stream:
            first = first or time.perf_counter() - begin
        if first is None or stream.answer.usage.completion_tokens != self.num_tokens:
            raise RuntimeError(f"the answer has {stream.answer.usage.completion_tokens} tokens, not {self.num_tokens}")
        return first


class Work:
    """One side of a comparison: rounds of fresh questions, and when their first texts came."""

    def __init__(self, ask: Ask, num_questions: int, num_clients: int) -> None:
        self.ask, self.num_questions, self.num_clients = ask, num_questions, num_clients
        self.num_rounds = 0
        self.firsts: list[float] = []

    def __call__(self) -> None:
        begin = self.num_rounds * self.num_questions
        self.num_rounds += 1
        self.firsts += run_clients(self.ask, range(begin, begin + self.num_questions), self.num_clients)


def compare(case: str, works: dict[str, Work], num_rounds: int, num_tokens: int) -> dict[str, Any]:
    """Measure the first work against the second. `ratio` is how fast the second is, in parts of the first."""
    first, second = works
    rounds = list(measure_rounds(works, num_rounds))
    control, taken = ratios(rounds, CONTROL), ratios(rounds, second)
    tokens = works[first].num_questions * num_tokens
    return {
        "case": case,
        "ratio": summarize([1 / each for each in taken]),
        "control": summarize(control),
        "void": is_void(control),
        "tokens_per_s": {name: round(tokens / statistics.median(each[name] for each in rounds), 1) for name in works},
        "first_text_ms": {name: round(1000 * statistics.median(work.firsts), 2) for name, work in works.items()},
    }


def measure(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Compare what was asked for, with the checkpoint of a folder."""

    def work(ask: Ask) -> Work:
        return Work(ask, given.questions, given.clients)

    results, serve = [], ("--model", str(folder))
    with Served(*serve) as server:
        client = partial(Client, model=folder.name, num_tokens=given.tokens)
        if given.what != "guards":
            inside = InProcess(folder, given.tokens)
            works = {"engine": work(inside.ask), "server": work(client(server, shows_pictures=False).ask)}
            found = compare("server / engine", works, given.rounds, given.tokens)
            later = found["first_text_ms"]["server"] - found["first_text_ms"]["engine"]
            is_reached = found["ratio"]["median"] >= GOAL_SPEED and later <= GOAL_FIRST_MS and not found["void"]
            results.append(found | {"first_text_later_ms": round(later, 2), "goal": [GOAL_SPEED, GOAL_FIRST_MS], "reached": is_reached})
            inside.vl.engine.close()
        if given.what != "engine":
            with Served(*serve, program=("-m", "benchmarks.unguarded")) as bare:
                works = {
                    "without guards": work(client(bare, shows_pictures=True).ask),
                    "with guards": work(client(server, shows_pictures=True).ask),
                }
                found = compare("guards", works, given.rounds, given.tokens)
            results.append(found | {"goal": GOAL_GUARDS, "reached": found["ratio"]["median"] >= GOAL_GUARDS and not found["void"]})
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--questions", type=int, default=8, help="in each round")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--what", choices=["both", "engine", "guards"], default="both")
    parser.add_argument("--shape", choices=["nano", *SHAPES], default="nano")
    parser.add_argument("--out", type=Path, help="file or folder for the JSON document")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = BUNDLED if given.shape == "nano" else write_checkpoint(given.shape, Path(temporary, given.shape))
        results = measure(given, folder)
    config = {
        "shape": given.shape,
        "clients": given.clients,
        "questions": given.questions,
        "tokens": given.tokens,
        "threads": torch.get_num_threads(),
    }
    finish("serve", torch.device("cpu"), config, given.rounds, results, given.out)


if __name__ == "__main__":
    main()
