"""Every benchmark from its official files to its score with nano: alone, killed and resumed, and on two processes, always the same bytes."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import gpu_evaluate
from qwen_vl.api import QwenVL
from qwen_vl.cli import main
from qwen_vl.evaluation.evaluate import evaluate, write_report
from qwen_vl.evaluation.report import read_report
from qwen_vl.evaluation.runner import Choices
from qwen_vl.evaluation.tasks import TASKS, find_task
from scripts import make_evaluation_table
from tests.evaluation_runs import (
    ENVIRONMENT,
    FINAL,
    evaluate_on_two,
    evaluate_one,
    evaluate_stopped,
    final_files,
    prepare,
    say_scores,
)
from tests.scripted_judge import serve

# One of each way to ask, to read and to score; the others take the same ways and are slow only by their number.
QUICK = ("nocaps", "refcoco_val", "scienceqa_test_img", "seed_video", "touchstone_en")
KILLED = ("refcoco_val", "mmbench_dev_20230712", "vqav2_val")
SHARED = ("refcoco_val", "vizwiz_test", "touchstone_en")
WORKER = Path(__file__).parent / "evaluator_worker.py"


@pytest.fixture(scope="module")
def vl() -> QwenVL:
    return QwenVL.load(device="cpu")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("official")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TASKS])
def test_a_task_end_to_end(vl: QwenVL, official: Path, data: Path, tmp_path: Path, name: str) -> None:
    prepare(official, data, name)
    task = find_task(name)
    samples = task.samples(data)
    with serve(say_scores) as endpoint:
        evaluate_one(vl, name, data, tmp_path / "clean", endpoint)
        clean = final_files(tmp_path / "clean" / name)
        evaluate_stopped(vl, name, data, tmp_path / "resumed", endpoint)
        assert final_files(tmp_path / "resumed" / name) == clean
        num_judged = len(endpoint.requests)
        assert num_judged == (2 * 2 * len(samples) if task.mode == "chat+judge" else 0)
        evaluate_one(vl, name, data, tmp_path / "resumed", endpoint)
        assert len(endpoint.requests) == num_judged, "nobody is asked again"
    lines = [json.loads(line) for line in clean["samples.jsonl"].decode().splitlines()]
    assert [line["id"] for line in lines] == [sample.id for sample in samples]
    assert all(line["error"] is None for line in lines)
    record = json.loads(clean["score.json"])
    assert record["num_samples"] == len(samples) and record["num_errors"] == 0
    has_references = all(sample.reference is not None for sample in samples)
    assert (record["value"] is not None) == has_references
    assert len(clean) > len(FINAL), "there are files for the server"
    journal = (tmp_path / "resumed" / name / "answers-0.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["id"] for line in journal) == sorted(sample.id for sample in samples), "each sample once"
    files = write_report(read_report(tmp_path / "clean"), root=data)
    assert task.title in files[1].read_text(encoding="utf-8")


def test_confidences_give_average_precision(vl: QwenVL, official: Path, data: Path, tmp_path: Path) -> None:
    prepare(official, data, "refcoco_val")
    results = evaluate(vl, find_task("refcoco_val"), root=data, out=tmp_path, choices=Choices(confidence=True))
    assert sum(result.confidences is not None and len(result.confidences) >= 1 for result in results) > len(results) / 2
    record = json.loads((tmp_path / "refcoco_val" / "score.json").read_text())
    assert 0 < record["others"]["average precision"] <= 100


def test_nano_finds_boxes_and_few_shot_examples_are_shown(vl: QwenVL, official: Path, data: Path, tmp_path: Path) -> None:
    prepare(official, data, "refcoco_val", "vqav2_val")
    evaluate(vl, find_task("refcoco_val"), root=data, out=tmp_path)
    assert (
        json.loads((tmp_path / "refcoco_val" / "score.json").read_text())["value"] >= 50
    )  # 62.5 of 16 with the bundled nano, which knows conversations only
    evaluate(vl, find_task("vqav2_val"), root=data, out=tmp_path, choices=Choices(few_shot=2), limit=3)
    lines = (tmp_path / "vqav2_val" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [len(json.loads(line)["pictures"]) for line in lines] == [3, 3, 3]


def kill(data: Path, out: Path, names: tuple[str, ...], num_kills: int) -> list[int]:
    """Run the worker; return how many answers there were after each kill."""
    arguments = [str(WORKER), str(data), str(out), ",".join(names), str(num_kills), "7"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    counts: list[int] = json.loads(done.stdout.splitlines()[-1])
    return counts


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_end_as_if_nothing_had_happened(vl: QwenVL, official: Path, data: Path, tmp_path: Path, num_kills: int) -> None:
    prepare(official, data, *KILLED)
    for name in KILLED:
        evaluate(vl, find_task(name), root=data, out=tmp_path / "clean")
    counts = kill(data, tmp_path / "killed", KILLED, num_kills)
    assert len(counts) == num_kills and max(counts) > 0
    for name in KILLED:
        assert final_files(tmp_path / "killed" / name) == final_files(tmp_path / "clean" / name)
        journal = (tmp_path / "killed" / name / "answers-0.jsonl").read_text(encoding="utf-8").splitlines()
        asked = Counter(json.loads(line)["id"] for line in journal)
        assert set(asked.values()) == {1} and len(asked) == len(find_task(name).samples(data))
    assert not (tmp_path / "killed" / ".lock").exists()


def test_two_processes_are_one(vl: QwenVL, official: Path, data: Path, tmp_path: Path) -> None:
    prepare(official, data, *SHARED)
    with serve(say_scores) as endpoint:
        for name in SHARED:
            evaluate_one(vl, name, data, tmp_path / "one", endpoint)
        asked_before = len(endpoint.requests)
        done = evaluate_on_two(data, tmp_path / "two", SHARED, endpoint)
        assert done.returncode == 0, done.stderr
        judged = Counter(json.dumps(body, sort_keys=True) for body in endpoint.requests[asked_before:])
    for name in SHARED:
        # The name of the model is that of the command line in both: the bundled nano.
        assert final_files(tmp_path / "two" / name) == final_files(tmp_path / "one" / name), name
        shares = [(tmp_path / "two" / name / f"answers-{rank}.jsonl").read_text(encoding="utf-8").splitlines() for rank in range(2)]
        asked = Counter(json.loads(line)["id"] for lines in shares for line in lines)
        assert set(asked.values()) == {1} and abs(len(shares[0]) - len(shares[1])) <= 1
    assert set(judged.values()) == {1} and len(judged) == asked_before == 2 * len(find_task("touchstone_en").samples(data)), "one process judges"
    assert done.stdout.count(find_task(SHARED[0]).title) == 1, "one process reports"
    assert {path.name for path in (tmp_path / "two").iterdir()} == {*SHARED, "report.json", "report.md", "report.html"}


@pytest.mark.slow
def test_a_judge_that_is_gone_ends_both_processes(official: Path, data: Path, tmp_path: Path) -> None:
    """The answers stay: started again with a judge that answers, nothing but its rounds is asked."""
    prepare(official, data, "touchstone_en")
    with serve(lambda number, body: 404) as endpoint:
        failed = evaluate_on_two(data, tmp_path / "out", ("touchstone_en",), endpoint)
    assert failed.returncode != 0 and "The judge refuses" in failed.stderr
    folder = tmp_path / "out" / "touchstone_en"
    before = {path: path.read_bytes() for path in folder.glob("answers-*.jsonl")}
    assert len(before) == 2 and all(before.values()) and not (folder / "score.json").exists() and not (tmp_path / "out" / ".lock").exists()
    with serve(say_scores) as endpoint:
        done = evaluate_on_two(data, tmp_path / "out", ("touchstone_en",), endpoint)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in folder.glob("answers-*.jsonl")} == before
    assert json.loads((folder / "score.json").read_text())["judge"]["num_judged"] == 2 * len(find_task("touchstone_en").samples(data))


def table_of_the_page() -> list[list[str]]:
    """Return the rows of the table of tasks in docs/evaluation.md."""
    text = make_evaluation_table.PAGE.read_text(encoding="utf-8")
    lines = text.partition(make_evaluation_table.BEGIN)[2].partition(make_evaluation_table.END)[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_has_every_task_and_all_are_equal() -> None:
    rows = table_of_the_page()
    assert [row[:3] for row in rows] == [[name, task.metric, task.mode] for name, task in TASKS.items()]
    assert all(row[5:] == ["equal", "equal"] for row in rows)


@pytest.mark.slow
def test_the_table_of_the_page_is_what_comes_out(tmp_path: Path) -> None:
    """All tasks, also on two processes. If nano was trained anew: python -m scripts.make_evaluation_table."""
    assert [row.cells() for row in make_evaluation_table.measure(list(TASKS), tmp_path)] == table_of_the_page()


def test_the_gpu_benchmark_runs_on_a_cpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    gpu_evaluate.main(["--shape", "nano", "--device", "cpu", "--small", "--out", str(tmp_path)])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    (row,) = document["results"]
    assert row["num_samples"] == 24 and row["samples_per_s"] > 0 and 0 < row["busy_share"] <= 1.5 and row["reached"] is None
    assert document["config"]["tokens"] == 10 and len(list(tmp_path.iterdir())) == 1


def test_the_page_for_users_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """docs/evaluation.md: the commands of the first run, then the Python at its end, in one folder."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    make, *commands = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)[0].strip().splitlines()
    subprocess.run(make, shell=True, check=True)
    for command in commands:
        program, *arguments = shlex.split(command)
        assert (program, main(arguments)) == ("qwen-vl", 0), command
    assert "within noise" in capfd.readouterr().out
    shutil.rmtree("scores")
    exec(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0], {})
    assert "Picture book" in capfd.readouterr().out and Path("scores/report.html").is_file()
