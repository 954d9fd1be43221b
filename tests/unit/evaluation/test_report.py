"""Reports: the same bytes for the same answers, every number where it belongs, a page that fetches nothing and breaks on no text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from qwen_vl.api import QwenVL
from qwen_vl.cli.evaluate import show_scores
from qwen_vl.errors import ConfigError, DataError
from qwen_vl.evaluation.compare import compare_reports
from qwen_vl.evaluation.evaluate import write_report
from qwen_vl.evaluation.formatting import format_beside, format_markdown
from qwen_vl.evaluation.html import format_page
from qwen_vl.evaluation.metrics.mme import COGNITION, PERCEPTION
from qwen_vl.evaluation.published import MME_SUBTASKS
from qwen_vl.evaluation.radar import AXES, draw_radar, shapes
from qwen_vl.evaluation.record import record_task
from qwen_vl.evaluation.report import FEW_GROUPS, read_report
from qwen_vl.evaluation.results import Store
from qwen_vl.evaluation.runner import Choices, settings_of
from qwen_vl.evaluation.task import PICTURE, Result, Sample, Task
from qwen_vl.evaluation.tasks import TASKS, find_task
from qwen_vl.evaluation.worst import choose_worst, found_boxes, wanted_boxes

from .conftest import ColourTask

NASTY = "<script>alert(1)</script> | `x` </td> & \"' \x00\x07 \udce9 狗"


class Page(HTMLParser):
    """What a page would fetch, and whether its elements close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.places: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data", "action") and not (value or "").startswith("#")]
        self.places += [value or "" for name, value in attrs if name == "id"]
        self.links += [value[1:] for name, value in attrs if name == "href" and value and value.startswith("#")]
        if tag not in ("meta", "img", "br", "line", "rect", "circle", "polygon"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("line", "rect", "circle", "polygon"):
            return
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def record(vl: QwenVL, out: Path, task: Task, samples: list[Sample], results: list[Result], root: Path, **choices: Any) -> None:
    """Write a task's folder without asking the model."""
    Store(out / task.name).open(settings_of(vl, task, Choices(**choices)), about={"python": "3"})
    record_task(out / task.name, task, samples, results, task.score(samples, results), root=root)


def boxed(root: Path, count: int = 40) -> tuple[list[Sample], list[Result]]:
    """Return phrases with boxes; three of four answers are right, one in ten is unreadable."""
    samples, results = [], []
    for number in range(count):
        path = root / f"{number // 2}.png"
        Image.new("RGB", (100, 50), (number * 5 % 255, 90, 90)).save(path)
        prompt = f"{PICTURE}<ref>thing {number}</ref><box>"
        samples.append(Sample(id=str(number), pictures=(path,), prompt=prompt, reference=[10, 10, 60, 40], extra={"width": 100, "height": 50}))
        answer = "no box" if number % 10 == 5 else "(100,200),(600,800)" if number % 4 else "(900,900),(999,999)"
        results.append(Result(id=str(number), answer=answer))
    return samples, results


@pytest.fixture
def out(vl: QwenVL, tmp_path: Path) -> Path:
    """A folder with a grounding task and one of nasty texts."""
    samples, results = boxed(tmp_path)
    record(vl, tmp_path / "out", find_task("refcoco_val"), samples, results, tmp_path)
    task = ColourTask(name="nasty", title=f"Nasty {NASTY}")
    asked = task.samples(tmp_path)[:4]
    samples = [replace(sample, prompt=sample.prompt + NASTY, reference=[NASTY], group=NASTY) for sample in asked]
    answers = [Result(id=sample.id, answer=NASTY if number else "") for number, sample in enumerate(samples)]
    answers[3] = Result(id=samples[3].id, error=NASTY)
    record(vl, tmp_path / "out", task, samples, answers, tmp_path)
    return tmp_path / "out"


def test_the_page_fetches_nothing_and_holds_together(out: Path, tmp_path: Path) -> None:
    text = format_page(read_report(out), tmp_path)
    page = Page(text)
    assert not page.open and not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert page.sources and all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert len(page.links) == 2 and set(page.links) <= set(page.places), "each score leads to its task"
    assert "default-src 'none'" in text and "http://" not in text and "https://" not in text
    assert "<script" not in text and "\x00" not in text and "&lt;script&gt;" in text
    text.encode("utf-8", "backslashreplace")


def test_every_score_is_in_every_form(out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = read_report(out)
    files = write_report(report, root=tmp_path)
    document = json.loads(files[0].read_text(encoding="utf-8"))
    (row,) = (row for row in document["scores"] if row["task"] == "refcoco_val")
    assert row["value"] == pytest.approx(100 * 26 / 40) and row["num_samples"] == 40 and row["num_unparsed"] == 4 and row["num_groups"] == 20
    assert row["interval"][0] < row["value"] < row["interval"][1]
    assert [each["model"] for each in row["published"]] == ["Qwen-VL", "Qwen-VL-Chat"]
    for each in row["published"]:
        assert each["difference"] == pytest.approx(row["value"] - each["value"])
        assert each["is_within_noise"] == (row["interval"][0] <= each["value"] <= row["interval"][1])
    show_scores(report)
    for text in (files[1].read_text(encoding="utf-8"), Page(files[2].read_text(encoding="utf-8")).text, capfd.readouterr().out):
        assert "65.00" in text and "89.36" in text and "-24.36" in text and "RefCOCO val" in text and "4" in text
    assert "Shikra-13B" in files[1].read_text(encoding="utf-8") and "Shikra-13B" in files[2].read_text(encoding="utf-8")


def test_markdown_tables_keep_their_columns(out: Path) -> None:
    for block in re.split(r"\n\n", format_markdown(read_report(out))):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) <= 1, block


def test_the_same_answers_give_the_same_bytes(vl: QwenVL, out: Path, tmp_path: Path) -> None:
    samples, results = boxed(tmp_path)
    record(vl, tmp_path / "again", find_task("refcoco_val"), samples, results[::-1], tmp_path)
    for name in ("samples.jsonl", "score.json"):
        assert (tmp_path / "again" / "refcoco_val" / name).read_bytes() == (out / "refcoco_val" / name).read_bytes()
    report = read_report(out)
    assert format_page(report, tmp_path) == format_page(read_report(out), tmp_path)


def test_the_worst_answers_have_their_pictures_and_boxes(out: Path, tmp_path: Path) -> None:
    report = read_report(out / "refcoco_val")
    lines = choose_worst(report.tasks[0].lines(), 6)
    assert len(lines) == 6 and all(line["score"] == 0 for line in lines)
    assert lines == choose_worst(report.tasks[0].lines(), 6)
    line = next(line for line in lines if line["answer"].startswith("("))
    assert wanted_boxes(line, 100, 50) == [(10, 10, 60, 40)]
    assert found_boxes(line, 100, 50) == [pytest.approx((90.09, 45.05, 100, 50), abs=0.01)]
    page = format_page(report, tmp_path)
    assert page.count("<figure>") == 6 and page.count("data:image/jpeg") == 6 and "the reference</span>" in page
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert format_page(report, tmp_path).count("cannot be read") == 6
    assert "data:image" not in format_page(report, None)


def test_a_page_gives_no_verdict_on_a_few_pictures(vl: QwenVL, tmp_path: Path) -> None:
    samples, results = boxed(tmp_path, 2 * FEW_GROUPS)
    verdicts = []
    for name, count in (("few", 2 * FEW_GROUPS - 2), ("enough", 2 * FEW_GROUPS)):
        record(vl, tmp_path / name, find_task("refcoco_val"), samples[:count], results[:count], tmp_path)
        page = Page(format_page(read_report(tmp_path / name), None)).text
        verdicts.append(["few pictures" in page, " below" in page, "0 of 2published numbers within noise" in page])
    assert verdicts == [[True, False, False], [False, True, True]]


def test_choices_are_shown_by_their_letters(vl: QwenVL, tmp_path: Path) -> None:
    task = find_task("scienceqa_test_img")
    samples = [
        replace(sample, reference=2, extra={"choices": ["a", "b", "c"], "question": "?"}) for sample in ColourTask(num_samples=4).samples(tmp_path)
    ]
    results = [Result(id=sample.id, choice=number % 2, choice_losses=(1.0, 2.0, 3.0)) for number, sample in enumerate(samples)]
    record(vl, tmp_path / "out", task, samples, results, tmp_path)
    page = format_page(read_report(tmp_path / "out"), None)
    assert page.count("<b>Reference</b> C</p>") == 4 and page.count("<b>Answer</b> A</p>") == page.count("<b>Answer</b> B</p>") == 2


def test_one_category_is_no_table(vl: QwenVL, tmp_path: Path) -> None:
    task = ColourTask(num_samples=4)
    samples = [replace(sample, reference="red") for sample in task.samples(tmp_path)]
    results = [Result(id=sample.id, answer="red") for sample in samples]
    record(vl, tmp_path / "two", task, samples, results, tmp_path)
    record(vl, tmp_path / "one", task, [replace(sample, group="all") for sample in samples], results, tmp_path)
    texts = [format_markdown(read_report(tmp_path / name)) for name in ("two", "one")]
    assert ["| even |" in texts[0], "| all |" in texts[1]] == [True, False]


def test_nothing_is_worst_where_all_is_right() -> None:
    line = {"id": "a", "score": 100.0}
    assert choose_worst([line, {**line, "id": "b"}], 5) == [] and choose_worst([], 5) == []
    assert len(choose_worst([{**line, "score": 0.0}], 5)) == 1, "if all is wrong, all is worst"
    assert choose_worst([{**line, "score": None}], 5) == []


def test_mme_is_reported_by_sum_and_subtask(vl: QwenVL, tmp_path: Path) -> None:
    task = find_task("mme")
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    samples, results = [], []
    for subtask in (*PERCEPTION, *COGNITION):
        for number in range(8):
            extra = {"image": f"{number // 2}.png", "question": "Is it?", "truth": "Yes"}
            id = f"{subtask}/{number}"
            samples.append(Sample(id=id, pictures=(tmp_path / "a.png",), prompt=f"{PICTURE}\nIs it?", reference="yes", group=subtask, extra=extra))
            results.append(Result(id=id, answer="Yes" if number != 3 else "perhaps"))
    record(vl, tmp_path / "out", task, samples, results, tmp_path)
    report = read_report(tmp_path / "out")
    rows = {row.name: row for row in report.rows}
    assert rows["mme_perception"].value == pytest.approx(10 * (87.5 + 75)) and rows["mme_cognition"].value == pytest.approx(4 * (87.5 + 75))
    assert (rows["mme_perception"].num_samples, rows["mme_perception"].num_unparsed, rows["mme_cognition"].num_unparsed) == (80, 10, 4)
    assert rows["mme_perception"].value in rows["mme_perception"].interval and rows["mme_perception"].beside[0].published == 1487.58
    page = format_page(report, tmp_path)
    assert all(f"{name} (Qwen-VL-Chat published {value:g})" in page for name, value in MME_SUBTASKS.items())


def test_halves_are_put_together(vl: QwenVL, tmp_path: Path) -> None:
    for half, right in (("human", 10), ("augmented", 30)):
        task = find_task(f"chartqa_test_{half}")
        samples = [replace(sample, reference=["3"]) for sample in ColourTask(num_samples=40).samples(tmp_path)]
        results = [Result(id=sample.id, answer="3" if number < right else "9") for number, sample in enumerate(samples)]
        record(vl, tmp_path / "out", task, samples, results, tmp_path)
    (joint,) = (row for row in read_report(tmp_path / "out").rows if row.name == "chartqa_test")
    assert joint.value == 50.0 and joint.num_samples == 80 and joint.is_same_split and joint.value in joint.interval
    assert joint.beside[0].published == 65.7


def test_halves_that_are_all_wrong_promise_what_one_set_would(vl: QwenVL, tmp_path: Path) -> None:
    for half in ("human", "augmented"):
        samples = [replace(sample, reference=["3"]) for sample in ColourTask(num_samples=40).samples(tmp_path / half)]
        results = [Result(id=sample.id, answer="9") for sample in samples]
        record(vl, tmp_path / "out", find_task(f"chartqa_test_{half}"), samples, results, tmp_path)
    rows = {row.name: row for row in read_report(tmp_path / "out").rows}
    assert 0 < rows["chartqa_test"].interval.high < rows["chartqa_test_human"].interval.high


def test_examples_in_the_prompt_change_what_is_beside(vl: QwenVL, tmp_path: Path) -> None:
    task = find_task("okvqa_val")
    samples = [replace(sample, reference=["red"] * 10) for sample in ColourTask(num_samples=4).samples(tmp_path)]
    results = [Result(id=sample.id, answer="red") for sample in samples]
    record(vl, tmp_path / "out", task, samples, results, tmp_path, few_shot=4)
    (row,) = read_report(tmp_path / "out").rows
    assert row.value == 100 and row.beside[0].published == 63.6 and not row.others
    assert row.interval.high == 100 and row.interval.low < 60 and row.num_groups < FEW_GROUPS, "four right answers promise little"


def test_tasks_without_references_name_their_files(vl: QwenVL, tmp_path: Path) -> None:
    task = find_task("vqav2_testdev")
    samples = [replace(sample, extra={"question_id": number}) for number, sample in enumerate(ColourTask(num_samples=3).samples(tmp_path))]
    results = [Result(id=sample.id, answer="red") for sample in samples]
    Store(tmp_path / "out" / task.name).open(settings_of(vl, task, Choices()))
    files = task.write_submission(samples, results, tmp_path / "out" / task.name / "submission")
    record_task(tmp_path / "out" / task.name, task, samples, results, task.score(samples, results), root=tmp_path, submission=files)
    report = read_report(tmp_path / "out")
    assert not report.rows and "vqav2_testdev.json" in format_markdown(report) and "vqav2_testdev.json" in format_page(report, tmp_path)


def test_the_radar_is_well_formed() -> None:
    measured = {axis: 50.0 for axis in list(AXES)[:4]} | {"docvqa_val": 40.0, "unknown": 3.0}
    shown = shapes("ours <&>", measured)
    assert shown[-1].values == {**dict.fromkeys(list(AXES)[:4], 50.0), "docvqa_test": 40.0}
    root = ElementTree.fromstring(draw_radar(shown))
    assert root.tag == "svg" and len(root.findall("text")) == len(AXES)
    dots = [circle for circle in root.findall("circle") if circle.get("class") == "series-own"]
    assert len(dots) == 5 and all(0 <= float(dot.get("cx", "-1")) <= 720 for dot in dots)
    full = shapes("all", dict.fromkeys(AXES, 200.0))
    assert "series-own area" in draw_radar(full)


def test_every_published_axis_names_a_task() -> None:
    assert set(AXES) - {"vizwiz", "chartqa_test"} <= set(TASKS)


def test_numbers_in_tables() -> None:
    assert format_beside(None) == "-"


def test_a_folder_without_tasks_or_with_damage_is_refused(out: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no finished task"):
        read_report(tmp_path / "nothing")
    (out / "nasty" / "run.json").write_text("{")
    with pytest.raises(DataError, match="run.json cannot be read"):
        read_report(out)
    (out / "refcoco_val" / "samples.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="line 1 is damaged"):
        format_page(read_report(out / "refcoco_val"), None)


# -- two runs


def test_two_runs_are_compared_sample_by_sample(vl: QwenVL, out: Path, tmp_path: Path) -> None:
    samples, results = boxed(tmp_path)
    better = [replace(result, answer="(100,200),(600,800)") for result in results]
    record(vl, tmp_path / "better", find_task("refcoco_val"), samples, better, tmp_path, seed=1)
    (found,) = compare_reports(read_report(out), read_report(tmp_path / "better"))
    assert (found.name, found.test.num_only_a, found.test.num_only_b) == ("refcoco_val", 0, 14)
    assert found.test.value_a == 65 and found.test.value_b == 100 and found.verdict == "B is better"
    assert found.test.p_mcnemar is not None and found.test.p_mcnemar < 0.001 and found.differing == ("seed: 0 / 1",)
    (same,) = compare_reports(read_report(out / "refcoco_val"), read_report(out / "refcoco_val"))
    assert same.verdict == "within noise" and same.test.p_value == 1 and same.differing == ()
    with pytest.raises(ConfigError, match="no scored task in common"):
        compare_reports(read_report(tmp_path / "better"), read_report(out / "nasty"))


def test_other_prompts_are_noticed(vl: QwenVL, out: Path, tmp_path: Path) -> None:
    samples, results = boxed(tmp_path)
    changed = [replace(samples[0], prompt=f"{PICTURE}<ref>something else</ref><box>"), *samples[1:]]
    record(vl, tmp_path / "changed", find_task("refcoco_val"), changed, results, tmp_path)
    (found,) = compare_reports(read_report(out), read_report(tmp_path / "changed"))
    assert found.differing == ("prompts or pictures of 1 samples",)
