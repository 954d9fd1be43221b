"""Do two replicas write more than one? Clients stream from `qwen-vl serve --replicas 2` and from `--replicas 1`.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_replicas --out benchmarks/results
    OMP_NUM_THREADS=1 python -m benchmarks.bench_replicas --shape A --tokens 16 --out benchmarks/results

Both are behind a gateway and a proxy of their own, answer the same questions, greedy, with the same number of tokens, and run at once:
the one that is not asked is idle. Their answers are compared before anything is timed. The goal, 1.5 times the tokens/s of one, is for
machines that have a core for each replica, one for the gateway and Ray's proxy, and one for the clients, which run here. On fewer the
record says what was seen, and on how many.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_decode import SHAPES
from benchmarks.bench_serve import Client, Work, compare, run_clients, write_checkpoint
from benchmarks.measure import finish
from benchmarks.served import Served
from qwen_vl.api.loading import BUNDLED

GOAL, CORES_OF_GOAL = 1.5, 4


def measure(given: argparse.Namespace, folder: Path, num_cores: int) -> dict[str, Any]:
    """Compare two replicas with one. Raises: SystemExit if their answers differ."""
    serve = ("--model", str(folder), "--cpus-per-replica", "1")
    with Served(*serve, "--replicas", "1") as one, Served(*serve, "--replicas", "2") as two:
        client = partial(Client, model=folder.name, num_tokens=given.tokens, shows_pictures=False)
        clients = {"one replica": client(one), "two replicas": client(two)}
        expect_same(clients, given.questions, given.clients)
        works = {name: Work(each.ask, given.questions, given.clients) for name, each in clients.items()}
        found = compare("two replicas / one", works, given.rounds, given.tokens)
    goal = GOAL if num_cores >= CORES_OF_GOAL else None
    reached = None if goal is None else found["ratio"]["median"] >= goal and not found["void"]
    return found | {"cores": num_cores, "goal": goal, "reached": reached}


def expect_same(clients: dict[str, Client], num_questions: int, num_clients: int) -> None:
    """Ask all the same questions. Raises: SystemExit if answers differ."""
    for each in clients.values():
        run_clients(each.ask, range(-num_questions, 0), num_clients)  # which are not asked again
    first, *others = (each.texts for each in clients.values())
    if any(each != first for each in others):
        raise SystemExit("the answers of two replicas and of one differ")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--questions", type=int, default=48, help="in each round")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--shape", choices=["nano", *SHAPES], default="nano")
    parser.add_argument("--out", type=Path, help="file or folder for the JSON document")
    given = parser.parse_args(arguments)
    num_cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = BUNDLED if given.shape == "nano" else write_checkpoint(given.shape, Path(temporary, given.shape))
        row = measure(given, folder, num_cores)
    config = {"shape": given.shape, "clients": given.clients, "questions": given.questions, "tokens": given.tokens, "cores": num_cores}
    finish("replicas", torch.device("cpu"), config, given.rounds, [row], given.out)


if __name__ == "__main__":
    main()
