"""docs/performance.md is what the records under benchmarks/results say."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure
from scripts.make_performance import GOAL_OF, GOALS, PAGE, RESULTS, figures, render


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run scripts/make_performance.py"


def test_every_record_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [path.name for path in RESULTS.glob("*.json") if f"benchmarks/results/{path.name}" not in page] == []


def test_goals_are_known() -> None:
    assert set(GOAL_OF.values()) <= set(GOALS)
    assert {number for number in GOALS if number[0] == "C"} == {f"C{number}" for number in range(1, 14)}


def document(bench: str, results: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"bench": bench, "device": "cpu", "config": {"shape": "A"}, "results": results, **more}


@pytest.mark.parametrize(
    ("median", "goal", "control", "verdict"), [(2.5, 2.0, 1.0, "reached"), (1.9, 2.0, 1.0, "missed"), (2.5, 2.0, 1.2, "void"), (0.5, None, 1.0, "")]
)
def test_a_ratio(median: float, goal: float | None, control: float, verdict: str) -> None:
    rounds = [{"ours": 1.0, "peer": median * (1 + control) / 2, "control": control}] * 3
    rows = [{"what": "picture", **row} for row in measure.comparisons(rounds, {"peer": goal})]
    (figure,) = figures(document("decode", rows))
    assert (figure.goal, figure.what, figure.value, figure.verdict) == ("C1", "shape A, picture, beside transformers", f"{median:.2f} x", verdict)
    assert figure.control == f"{control:.2f}"


def test_memory_wants_less() -> None:
    row = {"what": "memory", "which": "ours", "goal": 1.15, "median": 1.2, "quartiles": [1.2, 1.2], "peak_bytes": 2**31, "file_bytes": 2**30}
    (figure,) = figures(document("load", [row]))
    assert (figure.goal, figure.verdict, figure.value) == ("C11", "missed", "1.200 x (2.00 GiB of 1.00 GiB)")


def test_the_memory_of_an_epoch() -> None:
    rows = [{"what": "memory", "way": way, "peak_bytes": 2**30, "before_bytes": 1, "ratio": 1.0} for way in ("ours", "maximum")]
    found = list(figures(document("lora_epoch_memory", rows)))
    assert [each.what.rpartition(", ")[2] for each in found] == ["this project", "padding to the maximum"]


def test_figures_of_a_gpu() -> None:
    decode = {"goal_name": "G1", "precision": "bfloat16", "total_tokens": 2048, "sampling": "greedy", "tokens_per_s": 151.2, "share_of_ceiling": 0.7}
    decode |= {"generating_peak_bytes": 20.9e9, "goal_tokens_per_s": 150.0, "goal_gb": 21.5, "reached": True}
    first = {"goal_name": "G3", "what": "fresh", "goal_ms": 25.0, "median": 30.0, "quartiles": [29.0, 31.0], "share_of_matrix_rate": 0.5}
    users = {"goal_name": "G4", "users": 64, "requests": 512, "requests_per_s": 20.0, "tokens_per_s": 2500.0, "times_one_at_a_time": 21.0}
    users |= {"share_of_matrix_rate": 0.4, "reached": True}
    rows = [decode, {"goal_name": "G1", "total_tokens": 8192, "left_out": True}, first | {"reached": False}, users]
    found = list(figures(document("gpu", rows)))
    assert [(each.goal, each.verdict) for each in found] == [("G1", "reached"), ("G1", "missed"), ("G3", "missed"), ("G4", "reached")]
    assert found[0].value == "151.2 tokens/s, 70% of the ceiling, 20.9 GB" and found[2].value == "30.0 ms, 50% of the matrix rate"


def test_figures_of_an_evaluation_on_a_gpu() -> None:
    row = {"goal_name": "G6", "num_samples": 2000, "samples_per_s": 31.0, "busy_share": 0.8, "reached": False}
    (figure,) = figures(document("gpu_evaluate", [row | {"goals": {"samples_per_s": 30.0, "busy_share": 0.85}}]))
    assert (figure.goal, figure.value, figure.verdict) == ("G6", "31.0 samples/s, the device busy for 80%", "missed")


def test_figures_of_a_server() -> None:
    ratio, control = {"median": 0.97, "quartiles": [0.96, 0.98]}, {"median": 1.01, "quartiles": [1.0, 1.02]}
    engine = {"ratio": ratio, "control": control, "void": False, "first_text_later_ms": 12.0, "goal": [0.95, 10.0], "reached": False}
    guards = {"ratio": ratio, "control": control, "void": True, "goal": 0.97, "reached": False}
    found = list(figures(document("serve", [engine, guards])))
    assert [(each.goal, each.verdict) for each in found] == [("C8", "missed"), ("", "void")] and found[0].value == "0.970 x, first text 12.0 ms later"
    day = {"requests": 20_000, "failures": [], "growth_bytes_per_1000": 120_000, "passed": True}
    (figure,) = figures({"bench": "soak", "config": {"limit_bytes_per_1000": 1_000_000}, "results": [day]})
    assert (figure.value, figure.verdict) == ("0 failures, 0.12 MB per 1,000 requests", "reached")


@pytest.mark.parametrize(
    ("cores", "goal", "median", "control", "verdict"), [(2, None, 0.9, 1.0, ""), (8, 1.5, 1.7, 1.0, "reached"), (8, 1.5, 1.7, 1.2, "void")]
)
def test_figures_of_two_replicas(cores: int, goal: float | None, median: float, control: float, verdict: str) -> None:
    ratio = {"median": median, "quartiles": [median, median]}
    (figure,) = figures(document("replicas", [{"ratio": ratio, "control": {"median": control}, "cores": cores, "goal": goal}]))
    assert (figure.value, figure.verdict) == (f"{median:.3f} x", verdict) and f"on {cores} cores" in figure.what


def test_figures_of_int4_at_full_size() -> None:
    row = {"tokens_per_s": 4.2, "load_s": 30.0, "peak_gb": 11.5, "goal_gb": 13.0, "reached": True, "has_int8_head": True}
    (figure,) = figures(document("int4_full", [row]))
    assert (figure.goal, figure.value, figure.verdict) == ("C13", "11.50 GB; 4.20 tokens/s, loaded in 30 s", "reached")


def test_a_page_of_other_records(tmp_path: Path) -> None:
    row = {
        "method": "lora",
        "seq": 384,
        "seconds": 0.39,
        "quartiles": [0.38, 0.4],
        "peak_gb": 23.0,
        "goal_seconds": 0.4,
        "goal_gb": 24,
        "reached": True,
    }
    facts = {"copy_gb_per_s": 3000.0, "matrix_tflop_per_s": 600.0}
    (tmp_path / "a.json").write_text(json.dumps(document("gpu_train", [], best=[row], measured_device=facts)))
    (tmp_path / "b.json").write_text(json.dumps(document("something_new", [{"answer": 42}])))
    page = render(tmp_path)
    assert "| G5 | lora, 384 tokens | at most 0.40 s, 24 GB | 0.390 s, 23.0 GB |" in page and "copies 3,000 GB/s" in page
    assert "2. [`b.json`]" in page


def test_shapes_do_not_overwrite_each_other(tmp_path: Path) -> None:
    import torch

    for shape in ("A", "somewhere/checkpoint"):
        measure.finish("prefill", torch.device("cpu"), {"shape": shape}, 1, [], tmp_path)
    assert [path.name.split("_cpu_")[0] for path in sorted(tmp_path.iterdir())] == ["prefill_A", "prefill_checkpoint"]
