"""The runner: answers as if alone, each sample once, and nothing asked twice after a kill."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen_vl.api import QwenVL
from qwen_vl.api.raw import LoadedPicture, begin_raw, encode_pictures, encode_prompt, load_picture
from qwen_vl.errors import ConfigError, DataError, DiskError
from qwen_vl.evaluation import runner
from qwen_vl.evaluation.processes import Processes, join
from qwen_vl.evaluation.results import Journal, Store, cut_half_line, prompt_hash, read_line
from qwen_vl.evaluation.runner import Choices, answer, run
from qwen_vl.evaluation.task import Result
from tests.tiny import make_checkpoint

from .conftest import ColourTask

TASKS = {
    "generate": ColourTask(min_new_tokens=2, max_new_tokens=8),
    "likelihood": ColourTask(mode="likelihood"),
    "chat": ColourTask(mode="chat", top_p=0.01),
    "chat drawn by chance": ColourTask(mode="chat", top_p=0.9),
    "chat as the checkpoint has it": ColourTask(mode="chat"),
}


@pytest.mark.parametrize("mode", TASKS)
def test_answers_are_those_of_one_at_a_time(vl: QwenVL, tmp_path: Path, mode: str) -> None:
    task = TASKS[mode]
    samples = task.samples(tmp_path)
    together = {result.id: result for result in answer(vl, task, samples)}
    assert set(together) == {sample.id for sample in samples}
    for sample in samples:
        vl.engine.forget()
        (alone,) = answer(vl, task, [sample], num_threads=1)
        assert (alone.answer, alone.choice, alone.error) == (together[sample.id].answer, together[sample.id].choice, None)
        assert alone.choice_losses == pytest.approx(together[sample.id].choice_losses, abs=1e-4)
    if mode != "likelihood":
        assert len({result.answer for result in together.values()}) > 1, "the model must not say the same to all"


def test_the_lengths_are_the_tasks(vl: QwenVL, tmp_path: Path) -> None:
    results = list(answer(vl, task := ColourTask(min_new_tokens=5, max_new_tokens=7), task.samples(tmp_path)))
    assert all(5 <= result.num_new_tokens <= 7 for result in results)


def test_chat_depends_on_the_seed_alone(vl: QwenVL, tmp_path: Path) -> None:
    task = ColourTask(mode="chat", top_p=1.0)
    samples = task.samples(tmp_path)[:6]
    texts = [
        {result.id: result.answer for result in answer(vl, task, each, Choices(seed=seed))}
        for each, seed in ((samples, 1), (samples[::-1], 1), (samples, 2))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_greedy_chat_leaves_nothing_to_chance(tmp_path: Path) -> None:
    """Whatever the checkpoint's own settings are: these draw."""
    drawing = QwenVL.load(make_checkpoint(tmp_path / "draws", generation={"do_sample": True, "top_p": 1.0}), device="cpu")
    samples = ColourTask(mode="chat").samples(tmp_path)[:4]

    def texts(task: ColourTask, seed: int) -> dict[str, str]:
        return {result.id: result.answer for result in answer(drawing, task, samples, Choices(seed=seed))}

    assert texts(ColourTask(mode="chat"), 1) != texts(ColourTask(mode="chat"), 2), "the checkpoint must be one that draws"
    assert texts(ColourTask(mode="chat", greedy=True), 1) == texts(ColourTask(mode="chat", greedy=True), 2)


def test_what_is_wrong_with_one_sample_is_its_error(vl: QwenVL, tmp_path: Path) -> None:
    task = ColourTask(num_samples=8)
    samples = task.samples(tmp_path)
    samples[0].pictures[0].write_bytes(b"this is no picture")
    long = ColourTask(num_samples=1).samples(tmp_path / "other")[0]
    samples.append(type(long)(id="long", pictures=long.pictures, prompt=long.prompt + "word " * 2000))
    results = run(vl, task, samples, tmp_path / "out", root=tmp_path)
    assert [result.id for result in results] == [sample.id for sample in samples]
    errors = {result.id: result.error for result in results if result.error}
    bad = {sample.id for sample in samples if samples[0].pictures[0] in sample.pictures}
    assert set(errors) == bad | {"long"} and "0.png" in (errors["q0"] or "") and "context" in (errors["long"] or "")
    # They are asked again, and nothing else is.
    Image.new("RGB", (30, 30)).save(samples[0].pictures[0])
    before = (tmp_path / "out" / "answers-0.jsonl").read_text().count("\n")
    again = run(vl, task, samples, tmp_path / "out", root=tmp_path)
    assert {result.id for result in again if result.error} == {"long"}
    assert (tmp_path / "out" / "answers-0.jsonl").read_text().count("\n") == before + len(errors)


class Killed(Exception):
    """Stands for a signal."""


def kill_after(count: int) -> Any:
    def progress(done: int, total: int) -> None:
        nonlocal count
        count -= 1
        if count <= 0:
            raise Killed

    return progress


def test_a_killed_run_goes_on_where_it_was(vl: QwenVL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = ColourTask(num_samples=40)
    samples = task.samples(tmp_path)
    clean = run(vl, task, samples, tmp_path / "clean", root=tmp_path)
    asked: list[str] = []
    ask = runner.begin

    def note(vl: QwenVL, task: Any, sample: Any, *rest: Any) -> Any:
        asked.append(sample.id)
        return ask(vl, task, sample, *rest)

    monkeypatch.setattr(runner, "begin", note)
    out = tmp_path / "killed"
    known: set[str] = set()
    for count in (1, 5, 12):
        asked.clear()
        with pytest.raises(Killed):
            run(vl, task, samples, out, root=tmp_path, progress=kill_after(count))
        assert not known & set(asked), "what the file held is not asked again"
        journal = out / "answers-0.jsonl"
        known = {json.loads(line)["id"] for line in journal.read_text().splitlines()}
        assert len(known) >= count
        with journal.open("ab") as file:  # what a kill leaves in the middle of a line
            file.write(b'{"prompt": "0123", "id": "q3')
    asked.clear()
    assert run(vl, task, samples, out, root=tmp_path) == clean
    assert len(asked) == 40 - len(known) and not known & set(asked)
    asked.clear()
    assert run(vl, task, samples, out, root=tmp_path) == clean and not asked


def test_processes_share_the_samples(vl: QwenVL, tmp_path: Path) -> None:
    """Three that run one after the other, as if their barriers were open; also with a number that changes on the way."""
    task = ColourTask(num_samples=23)
    samples = task.samples(tmp_path)
    alone = run(vl, task, samples, tmp_path / "alone", root=tmp_path)
    out = tmp_path / "shared"
    Store(out).open(runner.settings_of(vl, task, Choices()))
    waiting = list(samples)
    parts = [Processes(rank, rank, 3).share_of(waiting) for rank in range(3)]
    assert sorted(sample.id for part in parts for sample in part) == sorted(sample.id for sample in samples)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    hashes = {sample.id: prompt_hash(sample, tmp_path) for sample in samples}
    for rank, part in enumerate(parts):
        with Store(out).journal(rank) as journal:
            for result in answer(vl, task, part[: 4 + rank]):  # and all are killed
                journal.add(result, hashes[result.id])
    assert run(vl, task, samples, out, root=tmp_path) == alone
    lines = [json.loads(line)["id"] for path in out.glob("answers-*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(hashes)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"choices": Choices(few_shot=2)}, "few_shot was 0 and is 2"), ({"task": ColourTask(max_new_tokens=11)}, "max_new_tokens was 10 and is 11")],
)
def test_changed_settings_are_refused_by_name(vl: QwenVL, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    task = ColourTask(num_samples=2)
    samples = task.samples(tmp_path)
    run(vl, task, samples, tmp_path / "out", root=tmp_path)
    with pytest.raises(ConfigError, match=named):
        run(vl, change.get("task", task), samples, tmp_path / "out", root=tmp_path, choices=change.get("choices"))


def test_another_model_and_other_data_are_refused(vl: QwenVL, base_vl: QwenVL, tmp_path: Path) -> None:
    task = ColourTask(num_samples=2)
    samples = task.samples(tmp_path)
    run(vl, task, samples, tmp_path / "out", root=tmp_path)
    with pytest.raises(ConfigError, match="model was .* and is "):
        run(base_vl, task, samples, tmp_path / "out", root=tmp_path)
    other = [type(sample)(id=sample.id, pictures=sample.pictures, prompt=sample.prompt + " now") for sample in samples]
    with pytest.raises(DataError, match="another prompt for sample q0"):
        run(vl, task, other, tmp_path / "out", root=tmp_path)
    assert len(run(vl, task, ColourTask(num_samples=4).samples(tmp_path), tmp_path / "out", root=tmp_path)) == 4, "more samples go on"


def test_a_base_checkpoint_cannot_chat(base_vl: QwenVL, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="base checkpoint"):
        list(answer(base_vl, task := ColourTask(mode="chat"), task.samples(tmp_path)))


def test_two_samples_of_one_id_are_refused(vl: QwenVL, tmp_path: Path) -> None:
    samples = ColourTask(num_samples=2).samples(tmp_path)
    with pytest.raises(DataError, match="id of their own"):
        run(vl, ColourTask(), [samples[0], samples[0]], tmp_path / "out", root=tmp_path)


def test_pictures_in_a_row_are_decoded_once(vl: QwenVL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def load(vl: QwenVL, path: Path) -> LoadedPicture:
        seen.append(path)
        return load_picture(vl, path)

    monkeypatch.setattr(runner, "load_picture", load)
    samples = ColourTask().samples(tmp_path)
    list(answer(vl, ColourTask(), samples))
    assert len(seen) == len(set(seen)) == len({path for sample in samples for path in sample.pictures})


def test_a_run_that_is_left_cancels_what_is_in_flight(vl: QwenVL, tmp_path: Path) -> None:
    results: Iterator[Result] = answer(vl, ColourTask(), ColourTask().samples(tmp_path))
    next(results)
    results.close()  # type: ignore[attr-defined]
    while vl.engine.step():
        pass
    state = vl.engine.statistics()
    assert (state.num_waiting, state.num_reading, state.num_writing) == (0, 0, 0)


# -- the files


@pytest.mark.parametrize("cut", [b"", b'{"id', b"\xff\xfe half a character", b"x" * 200_000])
def test_half_a_line_is_cut_off(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "answers-0.jsonl"
    whole = b'{"id": "a"}\n{"id": "b\xc3\xa9"}\n'
    for before in (whole, b""):
        path.write_bytes(before + cut)
        cut_half_line(path)
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line", ["", "[]", "{}", '{"id": 3, "prompt": "x"}', '{"id": "a", "prompt": "x", "new": 1}', '{"id": "a"}', '{"id": "a", "prompt": 1}', "{"]
)
def test_a_damaged_line_is_named(line: str) -> None:
    with pytest.raises(DataError, match="file line 7 is no answer"):
        read_line(line, "file line 7")


def test_answers_survive_the_file(vl: QwenVL, tmp_path: Path) -> None:
    """Line separators of Unicode, quotes, half a surrogate: one line each."""
    result = Result(id="a", answer='"\u2028\x85\n\r\t\x1c\udce9 狗', confidences=(0.5, 1.0), num_new_tokens=3)
    store = Store(tmp_path / "out")
    store.open({"task": "x"})
    with store.journal() as journal:
        journal.add(result, "digest")
    assert store.read({"a": "digest"}) == {"a": result}


class FullDisk:
    """A file on a disk with room for half a line."""

    def __init__(self, file: Any) -> None:
        self.file, self.room = file, 10

    def fileno(self) -> int:
        return int(self.file.fileno())

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written, self.room = self.file.write(content[: self.room]), 0
        return int(written)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "answers-0.jsonl"
    with path.open("ab", buffering=0) as file:
        Journal(path, file).add(Result(id="a"), "digest")
        before = path.read_bytes()
        with pytest.raises(DiskError, match="No space left.*nothing is repeated"):
            Journal(path, FullDisk(file)).add(Result(id="b"), "digest")  # type: ignore[arg-type]
    assert path.read_bytes() == before and before.endswith(b"\n")


def test_half_an_environment_is_refused() -> None:
    with join({}) as processes:
        assert (processes.is_main, processes.world_size, processes.hear("word")) == (True, 1, "word")
    with pytest.raises(ConfigError, match="not WORLD_SIZE.*torchrun .* evaluate"), join({"RANK": "0"}):
        pass
    odd = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    with pytest.raises(ConfigError, match="LOCAL_RANK=2 do not fit"), join(odd):
        pass


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    store.open({"task": "x"})
    store.open({"task": "x"})
    (tmp_path / "out" / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        store.open({"task": "x"})
    (tmp_path / "out" / "run.json").unlink()
    (tmp_path / "out" / "answers-0.jsonl").write_text("")
    with pytest.raises(ConfigError, match="holds answers but no run.json"):
        store.open({"task": "x"})


def test_prompt_hash_follows_the_place_below_the_root(tmp_path: Path) -> None:
    hashes = [prompt_hash(ColourTask().samples(tmp_path / name)[0], tmp_path / name) for name in ("a", "b")]
    assert hashes[0] == hashes[1]
    sample = ColourTask().samples(tmp_path / "a")[0]
    assert prompt_hash(type(sample)(id="z", pictures=sample.pictures, prompt=sample.prompt, choices=(" A",)), tmp_path / "a") != hashes[0]


def test_one_sample_by_hand(vl: QwenVL, tmp_path: Path) -> None:
    """What the runner hands to the engine is the prompt as it stands."""
    task = ColourTask(num_samples=1)
    (sample,) = task.samples(tmp_path)
    (found,) = answer(vl, task, [sample])
    pending = begin_raw(
        vl,
        encode_prompt(vl.tokenizer, sample.prompt),
        encode_pictures(vl, [load_picture(vl, path) for path in sample.pictures]),
        min_new_tokens=task.min_new_tokens,
        max_new_tokens=task.max_new_tokens,
    )
    while not pending.poll():
        vl.engine.step()
    assert found.answer == pending.text
