"""Every task from its official files to a score: prompts, references as answers, empty answers, output records, submissions."""

import csv
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from qwen_vl.errors import ConfigError, DataError
from qwen_vl.evaluation.task import PICTURE, Prepared, Result, Sample, Task, check_pictures, mean
from qwen_vl.evaluation.tasks import TASKS, find_task
from qwen_vl.evaluation.tasks.seed import pick_frames, split_prompt
from qwen_vl.grounding.box import Box
from qwen_vl.grounding.text import format_box
from tests.evaluation_data import write_official

MOST = {"nocaps": 1000.0, "flickr": 1000.0, "mme": 2800.0, "touchstone_en": 1000.0, "touchstone_zh": 1000.0}  # others: 100
SCORED = [name for name, task in TASKS.items() if task.has_references]
LEAST = {"touchstone_en": 100.0, "touchstone_zh": 100.0}  # others: 0


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="session")
def prepared(root: Path) -> Mapping[str, Prepared]:
    return {name: task.prepare(write_official(name, root / "official" / name.removesuffix("_text")), root) for name, task in TASKS.items()}


@pytest.fixture(scope="session")
def asked(root: Path, prepared: Mapping[str, Prepared]) -> Mapping[str, list[Sample]]:
    return {name: task.samples(root) for name, task in TASKS.items()}


def right_answer(task: Task, sample: Sample) -> Result:
    """Answer as the reference does."""
    reference: Any = sample.reference
    if task.mode == "likelihood":
        return Result(id=sample.id, choice=reference)
    if task.mode == "chat+judge":
        return Result(id=sample.id, answer=reference, rounds=((10.0, 10.0), (10.0, 10.0)))
    if task.name.startswith("mmbench"):
        return Result(id=sample.id, answer="ABCD"[reference])
    if task.name.startswith(("refcoco", "grit")):
        size = (sample.extra["width"], sample.extra["height"]) * 2
        x1, y1, x2, y2 = (round(edge / length * 999) for edge, length in zip(reference, size, strict=True))
        return Result(id=sample.id, answer=f"({x1},{y1}),({x2},{y2})</box>", confidences=(0.9,))
    if task.name == "picturebook" and sample.extra["boxes"]:
        return Result(id=sample.id, answer="".join(format_box(Box(*map(int, box))) for box in sample.extra["boxes"]))
    return Result(id=sample.id, answer=reference[0] if isinstance(reference, list) else reference)


@pytest.mark.parametrize("name", TASKS)
def test_samples_are_whole(name: str, asked: Mapping[str, list[Sample]], prepared: Mapping[str, Prepared]) -> None:
    task, samples = TASKS[name], asked[name]
    assert prepared[name].counts["samples"] == len(samples) > 1
    assert len({sample.id for sample in samples}) == len(samples)
    check_pictures(samples)
    assert all((sample.reference is not None) == task.has_references for sample in samples)
    assert (task.mode == "likelihood") == all(sample.choices for sample in samples)
    if task.usual_size:
        assert f"{task.usual_size:,}" in prepared[name].warnings[0]
    else:
        assert prepared[name].warnings == ()
    json.dumps([[sample.reference, sample.extra] for sample in samples], allow_nan=False)


@pytest.mark.parametrize("name", SCORED)
def test_references_as_answers_give_the_most(name: str, asked: Mapping[str, list[Sample]]) -> None:
    task, samples = TASKS[name], asked[name]
    if task.metric == "CIDEr":  # of several captions no single one can equal all
        samples = [replace(sample, reference=sample.reference[:1]) for sample in samples]
    score = task.score(samples, reversed([right_answer(task, sample) for sample in samples]))
    assert score is not None
    assert score.value == pytest.approx(MOST.get(name, 100.0))
    assert score.num_samples == len(samples) == len(score.per_sample)
    assert score.num_unparsed == score.num_errors == 0
    assert score.value == pytest.approx(sum(mean(units.values()) for units in score.strata.values()))
    assert not score.group_sizes or sum(score.group_sizes.values()) >= sum(map(len, score.strata.values()))
    json.dumps([score.others, score.groups, score.tables, score.parsed, score.rules], allow_nan=False)


@pytest.mark.parametrize("name", SCORED)
def test_empty_answers_and_errors_give_the_least(name: str, asked: Mapping[str, list[Sample]]) -> None:
    task, samples = TASKS[name], asked[name]
    rounds = ((10.0, 1.0),) if task.mode == "chat+judge" else ()
    empty = task.score(samples, [Result(id=sample.id, rounds=rounds) for sample in samples])
    failed = task.score(samples, [replace(right_answer(task, sample), error="no picture", rounds=rounds) for sample in samples])
    assert empty is not None and failed is not None
    assert empty.value == failed.value == LEAST.get(name, 0.0)
    assert (empty.num_errors, failed.num_errors) == (0, len(samples))


ODD = ["9" * 10**4, "(" * 10**4, "(1e308,1),(2,1e308)", "(nan,1),(2,3)", "<box>(a,b),(1)</box>" * 100, "<box>(0,0),(9,9)", "[" * 99, "\ud800\0\u202e"]


@pytest.mark.parametrize("name", TASKS)
def test_any_answer_is_scored_and_written(name: str, asked: Mapping[str, list[Sample]], tmp_path: Path) -> None:
    task, samples = TASKS[name], asked[name]
    for answer in ODD:
        results = [Result(id=sample.id, answer=answer, rounds=((1.0, 1.0),), confidences=(0.5,)) for sample in samples]
        score = task.score(samples, results)
        assert score is None or 0 <= score.value < 1000
        assert all(path.stat().st_size for path in task.write_submission(samples, results, tmp_path))


@pytest.mark.parametrize("name", TASKS)
def test_every_sample_is_written_once(name: str, asked: Mapping[str, list[Sample]], tmp_path: Path) -> None:
    task, samples = TASKS[name], asked[name]
    answers = [Result(id=sample.id, answer='a "b"\tc\nd', choice=0) for sample in samples]
    paths = task.write_submission(samples, answers, tmp_path)
    assert all(path.is_file() and path.is_relative_to(tmp_path) for path in paths)
    before = [path.read_bytes() for path in paths]
    assert before == [path.read_bytes() for path in task.write_submission(samples, answers, tmp_path)]
    assert len(task.records([(sample, answers[0]) for sample in samples])) == len(samples)


@pytest.mark.parametrize("name", TASKS)
def test_prepared_twice_is_the_same(name: str, root: Path, prepared: Mapping[str, Prepared]) -> None:
    again = TASKS[name].prepare(root / "official" / name.removesuffix("_text"), root)
    assert again == prepared[name]
    manifest = json.loads((root / TASKS[name].files[0]).parent.joinpath(f"{name}.manifest.json").read_text())
    assert manifest["files"] == again.files and manifest["counts"]["samples"] == again.counts["samples"]
    assert set(again.files) >= set(TASKS[name].files[:1])
    assert manifest["sources"]


PROMPTS = {
    "nocaps": "<img></img>Describe the image in English:",
    "flickr": "<img></img>Describe the image in English:",
    **dict.fromkeys(
        ["vqav2_val", "vqav2_testdev", "okvqa_val", "textvqa_val", "vizwiz_val", "vizwiz_test", "docvqa_val", "docvqa_test", "infographicsvqa"]
        + ["chartqa_test_human", "chartqa_test_augmented", "gqa_testdev", "ocrvqa_val", "ocrvqa_test"],
        "<img></img>What colour is the ball? Answer:",
    ),
    "ai2diagram_test": "<img></img>What colour is the ball?\nA. pink\nB. a zebra\nC. seven\nD. purple Answer:",
    "refcoco_val": "<img></img><ref>the house</ref><box>",
    "grit_refexp": "<img></img><ref>the house</ref><box>",
    "scienceqa_test_img": (
        "<img></img>Context: It is a picture.\nQuestion: What colour is the ball?\nOptions: A. a zebra\nB. pink\nC. seven\nD. purple\nAnswer:"
    ),
    "mmbench_dev_20230712": (
        "<img></img>Context: A picture\nbook\nQuestion: What colour is the ball?\nOptions: A. a zebra\nB. pink\nC. seven\nD. purple\nAnswer:"
    ),
    "seed_image": "<img></img>\nQuestion: What colour is the ball?\nOptions: A. a zebra\nB. pink\nC. seven\nD. purple\nAnswer:",
    "seed_video": "<img></img>\n" * 4 + "Question: What colour is the ball?\nOptions: A. a zebra\nB. pink\nC. seven\nD. purple\nAnswer:",
    "mme": "<img></img>\nIs there a ball in this image? Please answer yes or no.",
    "touchstone_en": "Picture 1: <img></img>\nWhat colour is the ball?",
    "mmmu": (
        "Picture 1: <img></img>\nPicture 2: <img></img>\nPicture 1 What colour is the ball?\n(A) a zebra\n(B) pink\n(C) seven\n(D) purple\n"
        "Answer with the option's letter from the given choices directly."
    ),
    "mathvista": ("Picture 1: <img></img>\nHint: Please answer.\nQuestion: What colour is the ball?\nChoices:\na zebra pink seven purple"),
}
LENGTHS = {
    **dict.fromkeys(["nocaps", "flickr"], (8, 30, 0.0)),
    **dict.fromkeys(["vqav2_val", "okvqa_val", "textvqa_val", "vizwiz_val", "gqa_testdev", "ai2diagram_test"], (1, 10, 1.0)),
    **dict.fromkeys(["docvqa_val", "infographicsvqa", "chartqa_test_human", "ocrvqa_test"], (1, 100, 1.0)),
    **dict.fromkeys(["refcoco+_testA", "refcocog_val", "grit_refexp"], (10, 28, 1.0)),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_the_releases(name: str, asked: Mapping[str, list[Sample]]) -> None:
    assert asked[name][0].prompt == PROMPTS[name]


def test_lengths_are_the_releases() -> None:
    assert {name: (TASKS[name].min_new_tokens, TASKS[name].max_new_tokens, TASKS[name].length_penalty) for name in LENGTHS} == LENGTHS


def test_an_empty_hint_is_not_available(asked: Mapping[str, list[Sample]]) -> None:
    assert asked["scienceqa_test_img"][1].prompt.startswith("<img></img>Context: N/A\n")
    assert any(sample.prompt.startswith("<img></img>Context: N/A\n") for sample in asked["mmbench_dev_20230712"])
    assert asked["mmbench_dev_20230712"][0].choices == (" A", " B", " C", " D")


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.few_shot_file])
def test_examples_come_before_the_question(name: str, root: Path, asked: Mapping[str, list[Sample]]) -> None:
    task = TASKS[name]
    if name.endswith(("_test", "_testdev")) and name.split("_")[0] in ("vqav2", "vizwiz", "docvqa"):
        assert (root / (task.few_shot_file or "")).is_file(), "the val split's preparation wrote them"
    shown = task.samples(root, few_shot=2, seed=3)
    assert shown == task.samples(root, few_shot=2, seed=3) != task.samples(root, few_shot=2, seed=4)
    for sample, alone in zip(shown, asked[name], strict=True):
        assert sample.prompt.endswith(alone.prompt) and sample.pictures[2:] == alone.pictures
        assert sample.prompt.count(PICTURE) == 3 and sample.reference == alone.reference
    first = shown[0].prompt
    assert first.split(PICTURE)[0] == "" and " Answer: " in first or "English: " in first


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not task.few_shot_file])
def test_other_tasks_have_no_examples(name: str, root: Path, prepared: Mapping[str, Prepared]) -> None:
    with pytest.raises(ConfigError, match="few_shot=1"):
        TASKS[name].samples(root, few_shot=1)


def test_too_many_examples_are_refused(root: Path, prepared: Mapping[str, Prepared]) -> None:
    with pytest.raises(ConfigError, match="there are 8 examples"):
        TASKS["vqav2_val"].samples(root, few_shot=9)


def results_of(samples: list[Sample], answer: str = " grey ", choice: int | None = 1) -> list[Result]:
    return [Result(id=sample.id, answer=answer, choice=choice) for sample in samples]


def written(name: str, asked: Mapping[str, list[Sample]], folder: Path, answer: str = " grey ") -> Any:
    (path, *_) = TASKS[name].write_submission(asked[name], results_of(asked[name], answer), folder)
    return json.loads(path.read_text(encoding="utf-8"))


def test_output_records(asked: Mapping[str, list[Sample]], tmp_path: Path) -> None:
    assert written("vqav2_testdev", asked, tmp_path)[0] == {"question_id": 101, "answer": "grey"}
    assert written("vizwiz_test", asked, tmp_path)[0] == {"image": "VizWiz_test_00000001.jpg", "answer": "grey"}
    assert written("vizwiz_val", asked, tmp_path)[1] == {"question_id": 1, "answer": "grey"}
    assert written("docvqa_test", asked, tmp_path)[0] == {"questionId": 101, "answer": "grey"}
    assert written("docvqa_val", asked, tmp_path)[0] == {"questionId": 101, "answer": "grey", "annotation": ["pink", "PINK"]}
    assert written("chartqa_test_human", asked, tmp_path)[0] == {"answer": "grey", "annotation": "pink"}
    assert written("gqa_testdev", asked, tmp_path)[0] == {"questionId": "101", "answer": "grey", "annotation": "pink"}
    assert written("ai2diagram_test", asked, tmp_path)[0] == {"image": 0, "answer": "grey", "annotation": "pink"}
    assert written("nocaps", asked, tmp_path)[0] == {"image_id": 1, "caption": "grey"}
    assert written("mmbench_dev_20230712", asked, tmp_path)[0] == {"index": 101, "prediction": 1}
    grit = written("grit_refexp", asked, tmp_path, "(100,200),(300,400)")
    assert grit[0] == {"example_id": "refexp_1_0", "confidence": 1.0, "bboxes": [[round(edge / 999 * 448) for edge in (100, 200, 300, 400)]]}
    assert written("grit_refexp", asked, tmp_path)[0]["bboxes"] == []


def test_seed_is_written_line_by_line(asked: Mapping[str, list[Sample]], tmp_path: Path) -> None:
    (path,) = TASKS["seed_image"].write_submission(asked["seed_image"], results_of(asked["seed_image"]), tmp_path)
    assert json.loads(path.read_text().splitlines()[0]) == {"question_id": "101", "prediction": "B"}


def test_mme_writes_its_first_line(asked: Mapping[str, list[Sample]], tmp_path: Path) -> None:
    paths = TASKS["mme"].write_submission(asked["mme"], results_of(asked["mme"], "Yes,\tit\nis"), tmp_path)
    assert len(paths) == 14 and paths[0] == tmp_path / "Qwen-VL-Chat" / "existence.txt"
    lines = paths[0].read_text().splitlines()
    assert lines[0].split("\t") == ["0001.jpg", "Is there a ball in this image? Please answer yes or no.", "Yes", "Yes, it"]
    assert len(lines) == 4


def read_sheet(path: Path) -> list[list[str | None]]:
    """Read a spreadsheet's texts and numbers."""
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            ElementTree.fromstring(archive.read(name))
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    return [[next((found.text for found in cell.iter() if found.tag in (f"{space}t", f"{space}v")), None) for cell in row] for row in sheet[0]]


def test_mmbench_writes_one_answer_for_each_question(asked: Mapping[str, list[Sample]], tmp_path: Path) -> None:
    """Question 101 has four rotations; three of them say "pink"."""
    task, samples = TASKS["mmbench_test_20230712"], asked["mmbench_test_20230712"]
    rotations = [sample for sample in samples if sample.extra["question_number"] == 101]
    chosen = {sample.id: sample.extra["choices"].index("pink") for sample in rotations[1:]} | {rotations[0].id: 0}
    results = [Result(id=sample.id, choice=chosen.get(sample.id, 3)) for sample in samples]
    _, path = task.write_submission(samples, results, tmp_path)
    assert path.name == "mmbench_test_20230712_constrained.xlsx"
    heading, *rows = read_sheet(path)
    assert heading[:3] == ["index", "question", "hint"] and heading[-1] == "prediction" and "image" not in heading
    assert len(rows) == len(samples)
    letters = [row[-1] for row in rows if int(row[0] or "") % 1_000_000 == 101]
    assert letters == ["ABCD"[sample.extra["choices"].index("pink")] for sample in rotations] and len(set(letters)) == 4
    assert rows[0][2] == "A picture\nbook" and rows[4][2] is None


def test_mmbench_counts_a_question_by_all_its_rotations(asked: Mapping[str, list[Sample]]) -> None:
    """Of 8 questions four have four rotations: one rotation wrong costs the question, one in twenty plainly, nothing consistently."""
    task, samples = TASKS["mmbench_dev_20230712"], asked["mmbench_dev_20230712"]
    results = [Result(id=sample.id, choice=sample.reference) for sample in samples]
    results[0] = replace(results[0], choice=3 - results[0].choice if results[0].choice is not None else 0)
    score = task.score(samples, results)
    assert score is not None
    assert (score.value, score.others["circular"], score.others["plain"], score.others["consistent"]) == (87.5, 87.5, 95.0, 100.0)
    assert score.num_samples == 20 and len(score.strata[""]) == 8


def test_mmbench_in_words_records_the_rule(asked: Mapping[str, list[Sample]]) -> None:
    task, samples = TASKS["mmbench_dev_20230712_text"], asked["mmbench_dev_20230712_text"]
    score = task.score(samples, results_of(samples, "I think it is pink."))
    assert score is not None
    assert set(score.rules.values()) == {"contained text", "none"}
    assert score.num_unparsed == sum(rule == "none" for rule in score.rules.values()) > 0


def test_touchstones_table_can_be_read_back(asked: Mapping[str, list[Sample]], tmp_path: Path) -> None:
    samples = asked["touchstone_en"]
    (path,) = TASKS["touchstone_en"].write_submission(samples, results_of(samples, 'a "b"\tc\nd'), tmp_path)
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), delimiter="\t"))
    assert [row["response"] for row in rows] == ['a "b"\tc\nd'] * 4 and rows[0]["gpt4_ha_answer"] == "It is:\npink"
    assert [row["index"] for row in rows] == [sample.id for sample in samples]


def test_touchstone_counts_rounds_and_refuses_none(asked: Mapping[str, list[Sample]]) -> None:
    task, samples = TASKS["touchstone_en"], asked["touchstone_en"]
    rounds = [((8.0, 4.0), (6.0, 6.0)), ((9.0, 2.0),), (), ((7.0, 8.0), (7.0, 8.0))]
    score = task.score(samples, [Result(id=sample.id, rounds=each) for sample, each in zip(samples, rounds, strict=True)])
    assert score is not None
    assert score.value == pytest.approx(100 * (4 + 6 + 2 + 8 + 8) / 5)
    assert score.per_sample == {samples[0].id: 500.0, samples[1].id: 200.0, samples[3].id: 800.0}
    assert (score.num_unparsed, score.group_sizes) == (1, {"color": 5, "counting": 2})
    assert score.others == {"reference answers": pytest.approx(100 * (8 + 6 + 9 + 7 + 7) / 5)}
    with pytest.raises(DataError, match="None of the 4 answers"):
        task.score(samples, results_of(samples))


def test_mme_sums_perception_and_cognition(asked: Mapping[str, list[Sample]]) -> None:
    """All yes: half of the questions right, no picture whole: 50 for each subtask."""
    score = TASKS["mme"].score(asked["mme"], results_of(asked["mme"], "Yes."))
    assert score is not None
    assert (score.value, score.others) == (700.0, {"perception": 500.0, "cognition": 200.0})
    assert set(score.tables["accuracy"].values()) == {50.0} and set(score.tables["accuracy+"].values()) == {0.0}


def test_grounding_reports_average_precision(asked: Mapping[str, list[Sample]]) -> None:
    task, samples = TASKS["refcoco_val"], asked["refcoco_val"]
    results = [right_answer(task, sample) for sample in samples]
    results[0] = replace(results[0], answer="(0,0),(1,1)", confidences=(0.1,))
    results[1] = replace(results[1], answer="nothing", confidences=())
    score = task.score(samples, results)
    assert score is not None
    assert score.num_unparsed == 1
    assert score.others["average precision"] == pytest.approx(100 * (len(samples) - 2) / len(samples))
    assert score.parsed[samples[1].id] is None
    unsure = task.score(samples, [replace(result, confidences=None) for result in results])
    assert unsure is not None and "average precision" not in unsure.others


def test_documents_are_broken_down(asked: Mapping[str, list[Sample]]) -> None:
    task, samples = TASKS["infographicsvqa"], asked["infographicsvqa"]
    score = task.score(samples, [right_answer(task, sample) for sample in samples])
    assert score is not None
    assert score.tables == {"answer": {"Image-Span": 100.0}, "evidence": {"Figure": 100.0, "Text": 100.0}}


def test_chartqa_also_the_right_way_round(asked: Mapping[str, list[Sample]]) -> None:
    task, samples = TASKS["chartqa_test_human"], asked["chartqa_test_human"]
    number = next(sample for sample in samples if sample.reference[0].isdigit())
    score = task.score([replace(number, reference=["100"])], [Result(id=number.id, answer="95")])
    assert score is not None
    assert (score.value, score.others["relative to the reference"]) == (0.0, 100.0)


@pytest.mark.parametrize(
    ("num_frames", "count", "frames"),
    [(9, 4, [1, 3, 5, 7]), (3, 4, [0, 1, 2]), (4, 4, [0, 1, 2, 2]), (101, 4, [12, 37, 62, 87]), (7, 4, [0, 2, 3, 4])],
)
def test_frames_are_spread(num_frames: int, count: int, frames: list[int]) -> None:
    assert pick_frames(num_frames, count) == frames


def test_clips_are_cut_from_their_videos(tmp_path: Path) -> None:
    """Ten frames at two a second: seconds 1 to 4 are frames 2 to 7, of which four are shown; nested folders, with or without the video's suffix."""
    question = {"question_id": 1, "question": "What?", "answer": "A", **{f"choice_{letter}": letter for letter in "abcd"}}
    videos = {"P1/a.mp4": (11, [1.0, 4.0]), "b.avi": (12, "[2, 8]"), "c": (10, None)}
    for video in ("P1/a", "b.avi", "c"):
        (tmp_path / "frames" / video).mkdir(parents=True)
        for frame in range(10):
            (tmp_path / "frames" / video / f"{frame:03d}.jpg").write_bytes(b"x")
    questions = [
        {**question, "question_id": name, "data_id": name, "question_type_id": kind, "segment": clip} for name, (kind, clip) in videos.items()
    ]
    (tmp_path / "SEED-Bench.json").write_text(json.dumps({"questions": questions}))
    task = TASKS["seed_video"]
    with pytest.raises(DataError, match=r"counts in seconds.*fps.json"):
        task.prepare(tmp_path, tmp_path)
    (tmp_path / "fps.json").write_text(json.dumps({"P1/a.mp4": 2.0}))
    task.prepare(tmp_path, tmp_path)
    shown = [[f"{path.parent.relative_to(tmp_path / 'frames')} {path.stem}" for path in sample.pictures] for sample in task.samples(tmp_path)]
    assert shown == [
        ["P1/a 002", "P1/a 003", "P1/a 004", "P1/a 006"],
        ["b.avi 002", "b.avi 003", "b.avi 004", "b.avi 006"],
        ["c 001", "c 003", "c 005", "c 007"],
    ]
    for clip in ("[NaN, 2]", [1], "x"):
        (tmp_path / "SEED-Bench.json").write_text(json.dumps({"questions": [{**questions[1], "segment": clip}]}))
        with pytest.raises(DataError, match="not two numbers"):
            task.prepare(tmp_path, tmp_path)


def test_an_open_tag_is_text() -> None:
    assert split_prompt("<img>a</img>x<img>b") == ("<img></img>x<img>b", ["a"])


def test_tasks_are_found_by_name() -> None:
    assert find_task("mme").name == "mme"
    with pytest.raises(ConfigError, match="did you mean 'vqav2_val'"):
        find_task("vqav2_vall")


def test_the_picture_books_own_exam_is_asked(asked: Mapping[str, list[Sample]]) -> None:
    from qwen_vl.evaluation.picturebook import write_exam

    _, questions = write_exam(2)
    assert [(sample.extra["question"], sample.reference, sample.group) for sample in asked["picturebook"]] == [
        (each.text, each.answer, each.topic) for each in questions
    ]
    assert {len(sample.pictures) for sample in asked["picturebook"]} == {1, 2}
