"""Writes docs/performance.md from the JSON under benchmarks/results, so that no figure in it is typed.

.venv/bin/python scripts/make_performance.py
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
CONTROL = "control"
CONTROL_LIMITS = (0.9, 1.1)

HEAD = """# Performance

Made by `scripts/make_performance.py` from the JSON under `benchmarks/results`; a test compares the two. Every record stays, those that lost as well.

Ratios say how many times as long as this project something else takes, so more is better; below 1 the other one is faster. Both run in one process
(for memory: in processes of their own, three times or more), turn by turn, forward and backward, seven times or more; the figure is the median of
the turns' ratios, with their quartiles. This project runs twice a turn: the ratio of these two is the control, and where its median leaves 0.9 to 1.1
the run is void. Outputs are compared before anything is timed. Absolute times are taken on GPUs alone, with what the GPU was measured to copy and to
multiply in the same run. Shapes A, B and C have random weights: 0.16, 0.46 and 1.2 G parameters.

Run a benchmark again with the command at the top of its file, for example `python -m benchmarks.bench_prefill --shape A --out benchmarks/results`,
and a table of any shape on your own machine with `qwen-vl profile`.
"""

# Of each goal: what is measured, and what is wanted.
GOALS = {
    "C1": (
        "greedy decoding, 128 tokens after a picture prompt, beside the released architecture as a plain loop",
        "2.0 / 1.5 / 1.15 x for A / B / C",
    ),
    "C2": ("the same without a picture, beside transformers: default cache, and compiled static cache", "1.3 x, 1.0 x"),
    "C3": ("Int4 decoding, beside float32 and beside llama.cpp Q4_0", "2.0 x, 0.8 x"),
    "C4": ("reading a picture and 256 tokens, beside the plain loop and beside transformers with sdpa", "1.3 x, 1.0 x"),
    "C5": ("a second question about the same picture, beside caches off and beside leaving the vision tower out", "2.0 x for A, 0.9 x"),
    "C6": ("time to the first token of turn 10 of a chat, beside caches off", "5 x"),
    "C7": ("32 requests with answers of 8 to 256 tokens, beside one at a time and beside a static batch of 8", "2.5 x, 1.5 x"),
    "C8": ("streaming to 4 clients, beside the engine in process", "0.95 x, first token at most 10 ms later"),
    "C9": ("a LoRA epoch of 200 samples, beside padding to the maximum and beside dynamic padding", "3 x, 1.3 x"),
    "C10": ("chunked cross-entropy over 151,936 classes, beside the plain one", "memory at most 0.15 x, time at most 1.05 x"),
    "C11": ("loading a sharded checkpoint of 1 G parameters to the first token: highest memory", "at most 1.15 x the files"),
    "C12": ("300 questions about pictures, 10 tokens each, beside one at a time", "3 x"),
    "C13": ("Int4 at full size on a CPU with 24 GB, loaded and answering: highest memory", "at most 13 GB"),
    "G1": ("bfloat16 decoding to 2,048 / 8,192 tokens in all", "150 / 130 tokens/s, at most 21.5 / 25.0 GB"),
    "G2": ("Int4 decoding to 2,048 / 8,192 tokens in all", "300 / 230 tokens/s, at most 11.5 / 15.0 GB"),
    "G3": ("first token of a picture and 256 tokens: everything new / picture known / beginning known", "25 / 15 / 8 ms"),
    "G4": ("64 users, 512 requests, new pictures", "18 requests/s, 2,300 tokens/s, 20 x one at a time"),
    "G5": ("a LoRA and a Q-LoRA step of 8 samples", "0.40 to 1.35 s, 1.15 x that for Q-LoRA"),
    "G6": ("evaluation, 2,000 pictures, 10 tokens each", "30 samples/s, the device busy for 85 %"),
}
# (bench, what) -> goal; a bench alone where its rows have no `what` or all belong to one goal.
GOAL_OF: dict[tuple[str, str] | str, str] = {
    ("decode", "picture"): "C1",
    ("decode", "text"): "C2",
    ("decode", "question"): "C5",
    ("decode", "chat"): "C6",
    ("decode", "many"): "C7",
    "int4": "C3",
    "prefill": "C4",
    "lora_epoch": "C9",
    "lora_epoch_memory": "C9",
    "load": "C11",
    "vqa": "C12",
}
ELSEWHERE = {  # records of quality, not of speed
    "int4_nano": "what four bits cost the bundled model, task by task: [quantization](quantization.md)",
    "nano_shapes": "what pictures that keep their shape are worth: [picture sizes](resolution.md)",
    "nano_lora": "what adapters teach the bundled model in minutes: [fine-tuning](finetuning.md)",
}
PEERS = {"dynamic": "dynamic padding", "maximum": "padding to the maximum", "peer": "transformers"}
Document = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One line of a table."""

    goal: str = ""  # C1 to G6; "" where a record has none
    what: str
    wanted: str = ""
    value: str
    spread: str = ""
    control: str = ""
    verdict: str = ""


def figures(document: Document) -> Iterator[Figure]:
    """Yield the lines of a record."""
    special = SPECIAL.get(document["bench"])
    if special is not None:
        yield from special(document)
        return
    for row in document["results"]:
        if row.get("what") == "memory" and "way" in row:
            yield memory_of_way(document, row)
        elif "which" in row:
            yield memory_of_files(document, row)
        elif "median" in row and row.get("peer") not in (None, CONTROL):
            yield comparison(document, row)


def comparison(document: Document, row: Row) -> Figure:
    """Return the line of a ratio."""
    task = row.get("what", "")
    if task == "many":
        task = f"{document['config']['requests']} requests"
    control = next((each for each in document["results"] if each.get("peer") == CONTROL and each.get("what") == row.get("what")), None)
    return Figure(
        goal=goal_of(document, row),
        what=", ".join(filter(None, [shape_of(document), task, f"beside {PEERS.get(row['peer'], row['peer'])}"])),
        wanted="" if row.get("goal") is None else f"{row['goal']} x",
        value=f"{row['median']:.2f} x",
        spread=spread(row["quartiles"]),
        control=f"{control['median']:.2f}" if control else "",
        verdict=verdict(row["median"], row.get("goal"), control["median"] if control else None),
    )


def goal_of(document: Document, row: Row) -> str:
    """Return the goal that a row belongs to."""
    return GOAL_OF.get((document["bench"], row.get("what", "")), GOAL_OF.get(document["bench"], ""))


def shape_of(document: Document) -> str:
    """Return what was measured: a shape, or the model."""
    config = document.get("config", {})
    name = config.get("shape") or config.get("model") or config.get("checkpoint") or ""
    shape = f"shape {name}" if name in ("A", "B", "C", "full") else str(name)
    return f"{shape} with 16-bit copies" if config.get("half") else shape


def spread(quartiles: list[float]) -> str:
    """Return quartiles as text."""
    return f"{quartiles[0]:.2f} to {quartiles[1]:.2f}"


def verdict(found: float, goal: float | None, control: float | None, *, at_most: bool = False) -> str:
    """Say whether a goal was reached, or why nothing can be said."""
    if control is not None and not CONTROL_LIMITS[0] <= control <= CONTROL_LIMITS[1]:
        return "void"
    if goal is None:
        return ""
    return "reached" if (found <= goal if at_most else found >= goal) else "missed"


def memory_of_files(document: Document, row: Row) -> Figure:
    """Return the line of the memory of loading."""
    return Figure(
        goal=goal_of(document, row),
        what=f"{shape_of(document)}, highest memory / size of the files, {'this project' if row['which'] == 'ours' else PEERS[row['which']]}",
        wanted="" if row["goal"] is None else f"at most {row['goal']} x",
        value=f"{row['median']:.3f} x ({gib(row['peak_bytes'])} of {gib(row['file_bytes'])})",
        spread=f"{row['quartiles'][0]:.3f} to {row['quartiles'][1]:.3f}",
        verdict=verdict(row["median"], row["goal"], None, at_most=True),
    )


def memory_of_way(document: Document, row: Row) -> Figure:
    """Return the line of the memory of an epoch."""
    way = "this project" if row["way"] == "ours" else PEERS[row["way"]]
    return Figure(goal=goal_of(document, row), what=f"{shape_of(document)}, highest memory of an epoch, {way}", value=gib(row["peak_bytes"]))


def gib(count: float) -> str:
    """Return a size as text."""
    return f"{count / 2**30:.2f} GiB"


def loss_figures(document: Document) -> Iterator[Figure]:
    """Yield the lines of the chunked cross-entropy: here ratios are its own, so less is better."""
    for row in document["results"]:
        what, control = f"width {document['config']['dim']}, {row['head']} head", row["control_ratio"]["median"]
        ratio = row["memory_ratio"]
        yield Figure(
            goal="C10", what=f"{what}, memory", wanted="at most 0.15 x", value=f"{ratio:.3f} x", verdict=verdict(ratio, 0.15, None, at_most=True)
        )
        time = row["time_ratio"]
        yield Figure(
            goal="C10",
            what=f"{what}, time",
            wanted="at most 1.05 x",
            value=f"{time['median']:.2f} x",
            spread=spread(time["quartiles"]),
            control=f"{control:.2f}",
            verdict=verdict(time["median"], 1.05, control, at_most=True),
        )


def gpu_figures(document: Document) -> Iterator[Figure]:
    """Yield the lines of the engine on one GPU."""
    for row in document["results"]:
        name = row["goal_name"]
        said = {None: "", True: "reached", False: "missed"}[row.get("reached")]
        if row.get("left_out") or row.get("out_of_memory"):
            yield Figure(
                goal=name, what=str(row.get("total_tokens", "")), value="left out" if row.get("left_out") else "out of memory", verdict="missed"
            )
        elif name in ("G1", "G2"):
            wanted = f"{row['goal_tokens_per_s']:.0f} tokens/s, {row['goal_gb']} GB" if row.get("goal_tokens_per_s") else ""
            peak = "" if row["generating_peak_bytes"] is None else f", {row['generating_peak_bytes'] / 1e9:.1f} GB"
            yield Figure(
                goal=name,
                what=f"{row['precision']} to {row['total_tokens']:,} tokens, {row['sampling']} sampling",
                wanted=wanted,
                value=f"{row['tokens_per_s']:.1f} tokens/s, {row['share_of_ceiling']:.0%} of the ceiling{peak}",
                verdict=said,
            )
        elif name == "G3":
            share = f", {row['share_of_matrix_rate']:.0%} of the matrix rate" if row["share_of_matrix_rate"] else ""
            yield Figure(
                goal=name,
                what=row["what"],
                wanted=f"at most {row['goal_ms']:.0f} ms",
                value=f"{row['median']:.1f} ms{share}",
                spread=spread(row["quartiles"]),
                verdict=said,
            )
        elif name == "G6":
            busy = "" if row["busy_share"] is None else f", the device busy for {row['busy_share']:.0%}"
            wanted = f"{row['goals']['samples_per_s']:.0f} samples/s, {row['goals']['busy_share']:.0%}"
            value = f"{row['samples_per_s']:.1f} samples/s{busy}"
            yield Figure(goal=name, what=f"{row['num_samples']:,} pictures, 10 tokens each", wanted=wanted, value=value, verdict=said)
        else:
            value = f"{row['requests_per_s']:.1f} requests/s, {row['tokens_per_s']:,.0f} tokens/s, {row['times_one_at_a_time']:.1f} x one at a time"
            if "share_of_matrix_rate" in row:
                value += f", {row['share_of_matrix_rate']:.0%} of the matrix rate"
            by = "over HTTP" if document["bench"] == "gpu_serve" else "the engine alone"
            yield Figure(goal=name, what=f"{row['users']} users, {row['requests']} requests, {by}", value=value, verdict=said)


def gpu_train_figures(document: Document) -> Iterator[Figure]:
    """Yield the lines of training on one GPU: the best way of each length."""
    for row in document["best"]:
        wanted = "" if row["goal_seconds"] is None else f"at most {row['goal_seconds']:.2f} s, {row['goal_gb']} GB"
        peak = "" if row["peak_gb"] is None else f", {row['peak_gb']:.1f} GB"
        share = f", {row['share_of_matrix_rate']:.0%} of the matrix rate" if "share_of_matrix_rate" in row else ""
        yield Figure(
            goal="G5",
            what=f"{row['method']}, {row['seq']:,} tokens",
            wanted=wanted,
            value=f"{row['seconds']:.3f} s{peak}{share}",
            spread=spread(row["quartiles"]),
            verdict={None: "", True: "reached", False: "missed"}[row["reached"]],
        )


def serve_figures(document: Document) -> Iterator[Figure]:
    """Yield the lines of the server: how fast it is in parts of what stands beside it, so more is better."""
    for row in document["results"]:
        first = row["first_text_later_ms"] if "first_text_later_ms" in row else None
        is_engine = first is not None
        goal = row["goal"][0] if is_engine else row["goal"]
        control = row["control"]["median"]
        what = "the server, in parts of the engine's speed" if is_engine else "the server with its guards, in parts of the speed without"
        yield Figure(
            goal="C8" if is_engine else "",
            what=", ".join(filter(None, [shape_of(document), what])),
            wanted=f"{goal} x" + (f", first text at most {row['goal'][1]:.0f} ms later" if is_engine else ""),
            value=f"{row['ratio']['median']:.3f} x" + (f", first text {first:.1f} ms later" if first is not None else ""),
            spread=f"{row['ratio']['quartiles'][0]:.3f} to {row['ratio']['quartiles'][1]:.3f}",
            control=f"{control:.2f}",
            verdict="void" if row["void"] else "reached" if row["reached"] else "missed",
        )


def replicas_figures(document: Document) -> Iterator[Figure]:
    """Yield the line of two replicas: how fast they are in parts of one, so more is better."""
    for row in document["results"]:
        yield Figure(
            what=f"{shape_of(document)}, two replicas, in parts of the speed of one, on {row['cores']} cores",
            wanted="" if row["goal"] is None else f"{row['goal']} x",
            value=f"{row['ratio']['median']:.3f} x",
            spread=f"{row['ratio']['quartiles'][0]:.3f} to {row['ratio']['quartiles'][1]:.3f}",
            control=f"{row['control']['median']:.2f}",
            verdict=verdict(row["ratio"]["median"], row["goal"], row["control"]["median"]),
        )


def int4_full_figures(document: Document) -> Iterator[Figure]:
    """Yield the line of an Int4 model at full size on a CPU."""
    for row in document["results"]:
        speed = f"{row['tokens_per_s']:.2f} tokens/s, loaded in {row['load_s']:.0f} s"
        yield Figure(
            goal="C13",
            what=f"{shape_of(document)}{', head in 8 bits' if row['has_int8_head'] else ''}",
            wanted="" if row["goal_gb"] is None else f"at most {row['goal_gb']:.0f} GB",
            value=f"{row['peak_gb']:.2f} GB; {speed}",
            verdict={None: "", True: "reached", False: "missed"}[row["reached"]],
        )


def soak_figures(document: Document) -> Iterator[Figure]:
    """Yield the line of a server's long day."""
    for row in document["results"]:
        yield Figure(
            what=f"{row['requests']:,} requests to the server, one in ten bad, one in ten of clients that leave",
            wanted=f"no failure, at most {document['config']['limit_bytes_per_1000'] / 1e6:.1f} MB per 1,000 requests",
            value=f"{len(row['failures'])} failures, {row['growth_bytes_per_1000'] / 1e6:.2f} MB per 1,000 requests",
            verdict="reached" if row["passed"] else "missed",
        )


SPECIAL: dict[str, Callable[[Document], Iterator[Figure]]] = {
    "loss": loss_figures,
    "gpu": gpu_figures,
    "gpu_evaluate": gpu_figures,
    "gpu_serve": gpu_figures,
    "gpu_train": gpu_train_figures,
    "serve": serve_figures,
    "replicas": replicas_figures,
    "int4_full": int4_full_figures,
    "soak": soak_figures,
}


def load(folder: Path) -> dict[str, Document]:
    """Return all records by file name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def goal_order(name: str) -> tuple[str, int]:
    """Return what goals are sorted by; what belongs to none comes last."""
    return (name[0], int(name[1:])) if name else ("Z", 0)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)])


def render(folder: Path = RESULTS) -> str:
    """Return the page."""
    documents = load(folder)
    shown = [name for name, document in documents.items() if document["bench"] not in ELSEWHERE]
    lines: list[tuple[Figure, int]] = [(figure, number) for number, name in enumerate(shown, start=1) for figure in figures(documents[name])]
    lines.sort(key=lambda line: goal_order(line[0].goal))
    found = {figure.goal for figure, _ in lines}
    goals = [[name, *texts, "measured" if name in found else "not yet"] for name, texts in GOALS.items()]
    cells = [
        [each.goal, each.what, each.wanted, each.value, each.spread, each.control, each.verdict, f"[{number}](#{anchor(shown[number - 1])})"]
        for each, number in lines
    ]
    sections = [
        HEAD,
        "## Goals\n\n" + table(["", "measurement", "goal", ""], goals) + "\n",
        "## Figures\n\n" + table(["", "what", "goal", "median", "quartiles", "control", "", "run"], cells) + "\n",
        "## Runs\n\n" + "\n\n".join(describe_run(number, name, documents[name]) for number, name in enumerate(shown, start=1)) + "\n",
    ]
    others = [f"- [`{name}`](../benchmarks/results/{name}): {ELSEWHERE[each['bench']]}" for name, each in documents.items() if name not in shown]
    if others:
        sections.append("## Other records\n\n" + "\n".join(others) + "\n")
    return "\n".join(sections)


def anchor(name: str) -> str:
    """Return the name of a run's place on the page."""
    return name.removesuffix(".json").lower()


def describe_run(number: int, name: str, document: Document) -> str:
    """Say on what, when and from which sources a run was made."""
    versions = ", ".join(f"{library} {version}" for library, version in document.get("versions", {}).items())
    load = document.get("load_average")
    facts = document.get("measured_device")
    device = document.get("device", "unknown")
    parts = [
        f'<a id="{anchor(name)}"></a>{number}. [`{name}`](../benchmarks/results/{name}): {device}',
        f"copies {facts['copy_gb_per_s']:,.0f} GB/s and multiplies {facts['matrix_tflop_per_s']:,.1f} TFLOP/s" if facts else "",
        f"{document.get('date', '')}, sources {document.get('commit', 'unknown')}",
        versions,
        f"{document.get('runs', 1)} rounds",
        f"load of the machine {load[0]}" if load else "",
    ]
    return "; ".join(part for part in parts if part)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
