"""The judge: what it is asked, what is read in its answers, and failures that are counted and never made into scores."""

import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from qwen_vl.errors import CapacityError, ConfigError, DataError
from qwen_vl.evaluation import judge as judging
from qwen_vl.evaluation.judge import Judge, JudgeSettings, format_messages, read_scores
from qwen_vl.evaluation.task import PICTURE, Result, Sample
from tests.scripted_judge import Endpoint, Script, serve

TEXTS = {"human_annotation": "A red house.", "question": "What is it?", "gpt4_ha_answer": "It is a red house."}


def make_samples(count: int) -> list[Sample]:
    return [Sample(id=str(number), pictures=(Path("a.png"),), prompt=f"{PICTURE}What is it?", extra=TEXTS) for number in range(count)]


def make_results(count: int) -> list[Result]:
    return [Result(id=str(number), answer=f" house {number}\n") for number in range(count)]


def judge_all(folder: Path, endpoint: Endpoint, count: int = 3, **settings: Any) -> tuple[list[Result], judging.JudgeCounts]:
    waits: list[float] = []
    merged = {"base_url": endpoint.url, "model": "scripted", "num_parallel": 1, "timeout_s": 30.0, **settings}
    judge = Judge(JudgeSettings(**merged), sleep=waits.append)
    outcome = judge.judge_all(make_samples(count), make_results(count), folder)
    assert waits == [5.0] * len(waits)
    return outcome


def test_the_words_are_the_releases() -> None:
    system, user = format_messages("DESCRIPTION", "QUESTION", "FIRST", "SECOND")
    assert system == {"role": "system", "content": "You are a helpful and precise assistant for checking the quality of the answer."}
    text = user["content"]
    assert text.startswith("[Detailed Image Description]\nDESCRIPTION\n\n[Question]\nQUESTION\n\n[The Start of Assistant 1's Answer]\nFIRST\n\n")
    assert (
        "[The End of Assistant 1's Answer]\n\n[The Start of Assistant 2's Answer]\nSECOND\n\n[The End of Assistant 2's Answer]\n\n[System]\nWe would"
        in text
    )
    assert text.endswith("does not affect your judgment.\n\n") and text.count("\n") == 21


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 7", (8, 7)),
        ("8.5 7\nbecause", (8.5, 7)),
        (" 10, 1 ", (10, 1)),
        ("8", None),
        ("8 7 6", None),
        ("11 5", None),
        ("0 5", None),
        ("nan 5", None),
        ("inf 5", None),
        ("eight seven", None),
        ("", None),
        ("Assistant 1: 8 7", None),
        ("\n8 7", (8, 7)),
    ],
)
def test_scores_are_two_numbers_from_1_to_10(reply: str, scores: tuple[float, float] | None) -> None:
    assert read_scores(reply) == scores


def test_both_rounds_and_their_order(tmp_path: Path) -> None:
    """The judge likes whatever stands first: over both rounds, both answers get the same."""
    with serve(lambda number, body: "9 4") as endpoint:
        results, counts = judge_all(tmp_path, endpoint, 1)
    assert results[0].rounds == ((9.0, 4.0), (4.0, 9.0))  # (of the reference, of the answer)
    assert (counts.num_rounds, counts.num_judged, counts.num_failed) == (2, 2, 0)
    first, second = (request["messages"][1]["content"] for request in endpoint.requests)
    assert first.index("It is a red house.") < first.index("house 0") and second.index("house 0") < second.index("It is a red house.")
    assert all((request["temperature"], request["stop"], request["model"]) == (0, ["\n"], "scripted") for request in endpoint.requests)


def test_what_was_judged_is_not_asked_again(tmp_path: Path) -> None:
    with serve(lambda number, body: "5 6") as endpoint:
        before, _ = judge_all(tmp_path, endpoint, 3)
        with (tmp_path / "judge.jsonl").open("a") as file:
            file.write('{"request_hash": "ab')  # a kill in the middle of a line
        again, counts = judge_all(tmp_path, endpoint, 4)
        assert again[:3] == before and counts.num_cached == 6 and len(endpoint.requests) == 8
        judge_all(tmp_path, endpoint, 4, model="another")
        assert len(endpoint.requests) == 16, "another judge is asked anew"
    record = json.loads((tmp_path / "judge.jsonl").read_text().splitlines()[0])
    assert record["request"]["messages"][0]["role"] == "system" and record["reply"] == "5 6"


@pytest.mark.parametrize(
    ("reply", "kind"), [(500, "refused"), (429, "refused"), ("no idea", "malformed"), (b"no JSON", "refused"), ("", "malformed")]
)
def test_failures_are_tried_again_and_counted(tmp_path: Path, reply: Any, kind: str) -> None:
    script: Script = lambda number, body: reply if number < 2 else "7 8"  # noqa: E731
    with serve(script) as endpoint:
        results, counts = judge_all(tmp_path, endpoint, 1)
    assert getattr(counts, kind) == 2 and counts.num_tries == 4 and counts.num_failed == 0
    assert results[0].rounds == ((7.0, 8.0), (8.0, 7.0))


def test_a_round_that_fails_to_the_end_is_left_out(tmp_path: Path) -> None:
    """The second round of the second sample is never readable: it has no score, and everything else is as it was."""

    def script(number: int, body: dict[str, Any]) -> str:
        text = body["messages"][1]["content"]
        return "sorry" if text.index("house 1") < text.index("It is a red") else "6 2"

    def find(number: int, body: dict[str, Any]) -> str:
        return script(number, body) if "house 1" in body["messages"][1]["content"] else "6 2"

    with serve(find) as endpoint:
        results, counts = judge_all(tmp_path, endpoint, 3)
        assert [result.rounds for result in results] == [((6.0, 2.0), (2.0, 6.0)), ((6.0, 2.0),), ((6.0, 2.0), (2.0, 6.0))]
        assert (counts.num_failed, counts.malformed, counts.num_tries, len(endpoint.requests)) == (1, 5, 10, 10)
        assert counts.to_dict() == {"num_rounds": 6, "num_judged": 5, "num_failed": 1}


def test_timeouts_are_counted(tmp_path: Path) -> None:
    with serve(lambda number, body: None if number == 0 else "3 4") as endpoint:
        results, counts = judge_all(tmp_path, endpoint, 1, timeout_s=0.5)
    assert counts.timeout >= 1 and counts.num_failed == 0 and results[0].rounds == ((3.0, 4.0), (4.0, 3.0))


def test_an_endpoint_that_is_gone_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "MAX_FAILURES_IN_A_ROW", 3)
    with serve(lambda number, body: 503) as endpoint, pytest.raises(CapacityError, match="failed 3 rounds in a row"):
        judge_all(tmp_path, endpoint, 10)
    assert len(endpoint.requests) == 15, "five tries of three rounds"


def test_a_wrong_key_or_model_is_said_at_once(tmp_path: Path) -> None:
    with serve(lambda number, body: 401) as endpoint, pytest.raises(ConfigError, match="refuses"):
        judge_all(tmp_path, endpoint, 2)
    assert len(endpoint.requests) <= 2


def test_the_key_is_sent_and_never_written(tmp_path: Path) -> None:
    with serve(lambda number, body: "3 4") as endpoint:
        Judge(JudgeSettings(base_url=endpoint.url), api_key="secret-key").judge_all(make_samples(1), make_results(1), tmp_path)
        assert endpoint.keys == ["Bearer secret-key"] * 2
    assert all("secret-key" not in path.read_text() for path in tmp_path.iterdir())
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        Judge(JudgeSettings()).judge_all(make_samples(1), make_results(1), tmp_path)


def test_samples_without_an_answer_are_not_judged(tmp_path: Path) -> None:
    with serve(lambda number, body: "3 4") as endpoint:
        judge = Judge(JudgeSettings(base_url=endpoint.url))
        results, counts = judge.judge_all(make_samples(1), [Result(id="0", error="no picture")], tmp_path)
    assert results[0].rounds == () and counts.num_rounds == 0 and not endpoint.requests


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    for line in ('{"request_hash": "a", "failure": null, "reply": "11 99"}', "{}", "[]"):
        (tmp_path / "judge.jsonl").write_text(line + "\n")
        with serve(lambda number, body: "3 4") as endpoint, pytest.raises(DataError, match="judge.jsonl line 1"):
            judge_all(tmp_path, endpoint, 1)


def test_samples_that_lack_a_text_are_named(tmp_path: Path) -> None:
    sample = Sample(id="x", pictures=(), prompt="What?", extra={"question": "What?"})
    with serve(lambda number, body: "3 4") as endpoint, pytest.raises(DataError, match="Sample x has no human_annotation"):
        Judge(JudgeSettings(base_url=endpoint.url)).judge_all([sample], [Result(id="x")], tmp_path)


@pytest.mark.parametrize("settings", [{"max_tries": 0}, {"num_parallel": 0}, {"timeout_s": 0.0}, {"wait_s": -1.0}, {"wait_s": float("nan")}])
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        JudgeSettings(**settings)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """What was written of a line is taken back: a later line would be joined to it, and the file be damaged in the middle."""
    request, path = {"model": "scripted"}, tmp_path / "judge.jsonl"
    cache = judging.Cache(path)
    cache.add(request, (8, 7), "8 7", None)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, and not the process
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
        with pytest.raises(ConfigError, match="judge.jsonl cannot be written.*nothing is repeated"):
            cache.add({"model": "other"}, (8, 7), "8 7", None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == before and judging.Cache(path).get(request) == (8, 7)
