"""Two replicas of nano on Ray Serve, and real clients."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from benchmarks import bench_replicas

pytestmark = pytest.mark.slow
pytest.importorskip("ray")

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "src" / "qwen_vl" / "assets" / "demo" / "beach.png"
KEY = "test"
SECONDS = 180.0
MARK = "QWEN_VL_TEST_OF"
CHAT, GENERATION = "/v1/chat/completions", "/api/v1/services/aigc/multimodal-generation/generation"


def replicas(tmp_path: Path, *arguments: str) -> AbstractContextManager[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run `qwen-vl serve --replicas 2` and give its address."""
    port = free_port()
    return serving(tmp_path, port, "qwen_vl", "serve", "--replicas", "2", "--cpus-per-replica", "0.5", "--port", str(port), *arguments)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(tmp_path: Path, port: int, *module: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    environment = {**os.environ, "QWEN_VL_API_KEY": KEY, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment[MARK] = str(os.getpid())
    for name in ("RAY_ADDRESS", "PYTEST_CURRENT_TEST"):  # Ray behaves otherwise where it believes that it is being tested
        environment.pop(name, None)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", *module], stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
    try:
        wait_until(lambda: b"answers at" in log.read_bytes() or process.poll() is not None)
        assert process.poll() is None, log.read_text(errors="replace")
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()


def wait_until(is_so: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with replicas(tmp_path_factory.mktemp("replicas")) as (url, _):
        yield url


def question(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "nano", "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def post(url: str, document: Any, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=document, headers={"Authorization": f"Bearer {KEY}"} | headers, timeout=SECONDS)


def metrics_of(url: str) -> str:
    return httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS).text


def test_openais_client_talks_to_it(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key=KEY, timeout=SECONDS)
    uri = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    content: Any = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "框出图中的狗"}]
    messages: Any = [{"role": "user", "content": content}]
    whole = client.chat.completions.create(model="nano", messages=messages, temperature=0)
    assert "<box>" in str(whole.choices[0].message.content)
    pieces = client.chat.completions.create(model="nano", messages=messages, temperature=0, stream=True)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert streamed == whole.choices[0].message.content
    assert client.models.list().data[0].id == "nano"


def test_dashscopes_client_uploads_a_file_for_all_replicas(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import dashscope

    monkeypatch.setattr(dashscope, "base_http_api_url", f"{server}/api/v1")
    call: Any = dashscope.MultiModalConversation.call
    texts = []
    for words in ("框出图中的狗", "框出图中的女孩", "这是什么?"):
        messages = [{"role": "user", "content": [{"image": f"file://{PICTURE}"}, {"text": words}]}]
        answer = call(model="nano", messages=messages, api_key=KEY, temperature=0.0)
        assert answer.status_code == 200, (answer.code, answer.message)
        texts.append(answer.output.choices[0].message.content[0]["text"])
    assert "<ref>狗</ref><box>" in texts[0]
    strange = [{"role": "user", "content": [{"image": "oss://0/none.png"}, {"text": "这是什么?"}]}]
    headers = {"Authorization": f"Bearer {KEY}"}
    refused = httpx.post(f"{server}{GENERATION}", json={"model": "nano", "input": {"messages": strange}}, headers=headers, timeout=SECONDS)
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter.UploadNotFound")


def test_what_belongs_together_goes_to_one_replica(server: str) -> None:
    seen: dict[str, set[str]] = {}
    for _ in range(3):
        for text in ("Who are you?", "What can you do?", "Hello", "你好", "你是谁?", "Good morning", "Bye", "Thanks"):
            seen.setdefault(text, set()).add(post(server, question(text, max_tokens=4)).headers["x-replica"])
    assert all(len(names) == 1 for names in seen.values())
    assert len(set.union(*seen.values())) == 2


def test_two_large_uploads_fit_one_question(server: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    handles = []
    for name in ("a.bmp", "b.bmp"):  # of 12.9 MiB: in base64 they would be more than a body may be
        content = io.BytesIO()
        Image.new("RGB", (2250, 2000), "red").save(content, "BMP")
        permit = httpx.get(f"{server}/api/v1/uploads?action=getPolicy", headers=headers, timeout=SECONDS).json()["data"]
        form = {"key": f"{permit['upload_dir']}/{name}"}
        assert httpx.post(permit["upload_host"], data=form, files={"file": (name, content.getvalue())}, timeout=SECONDS).status_code == 200
        handles.append(f"oss://{form['key']}")
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": handle}} for handle in handles]
    asked: Any = {"model": "nano", "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}], "max_tokens": 4}
    assert post(server, asked).status_code == 200
    twice = json.dumps(asked)[:-1] + ', "max_tokens": 5}'
    refused = httpx.post(f"{server}{CHAT}", content=twice, headers=headers | {"Content-Type": "application/json"}, timeout=SECONDS)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "duplicate_key")
    asked["messages"][0]["content"] = [parts[0]] * 500
    assert post(server, asked).json()["error"]["code"] == "too_many_images"


def test_questions_about_one_picture_go_to_one_replica(server: str) -> None:
    seen: dict[int, set[str]] = {}
    for words in ("What is it?", "Where?"):
        for shade in range(8):
            content = io.BytesIO()
            Image.new("RGB", (32, 32), (30 * shade, 0, 0)).save(content, "PNG")
            uri = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
            message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": words}]}
            answer = post(server, {"model": "nano", "messages": [message], "max_tokens": 4})
            seen.setdefault(shade, set()).add(answer.headers["x-replica"])
        time.sleep(2)  # for Ray to tell the gateway who knows what
    assert all(len(names) == 1 for names in seen.values())
    assert len(set.union(*seen.values())) == 2  # fails by luck once in 128 times


def test_health_does_not_wait_behind_answers(server: str) -> None:
    async def run() -> float:
        async with httpx.AsyncClient(base_url=server, headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS) as client:
            asked = [client.post(CHAT, json=question(f"Hi {n}", min_tokens=300, max_tokens=300)) for n in range(50)]  # more than both take at once
            waiting = asyncio.gather(*asked)
            while "qwen_vl_gateway_in_flight 50.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.05)
            started = time.monotonic()
            assert (await client.get("/health")).json() == {"status": "ok"}
            lasted_s = time.monotonic() - started
            assert not waiting.done()
            await waiting
            return lasted_s

    assert asyncio.run(run()) < 3


def test_it_refuses_as_one_process_does(server: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    for path in ("/-/routes", "/-/healthz", "/-/routes/"):
        assert httpx.get(f"{server}{path}", timeout=SECONDS).status_code == 401, path
        known = httpx.get(f"{server}{path}", headers=headers, timeout=SECONDS)
        assert (known.status_code, known.json()["error"]["code"]) == (404, "not_found")
    assert httpx.post(f"{server}/health", content=b"x" * 1000, timeout=SECONDS).status_code == 401
    long = httpx.get(f"{server}/v1/models", headers=headers | {"x-long": "x" * 2**17}, timeout=SECONDS)
    assert long.status_code == 400
    traced = httpx.request("TRACE", f"{server}{CHAT}", headers=headers, timeout=SECONDS)
    assert (traced.status_code, traced.json()["error"]["code"]) == (405, "method_not_allowed")


def test_strangers_and_floods_end_at_the_gateway(server: str) -> None:
    refused = post(server, question("Hello"), Authorization="Bearer wrong")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert "x-replica" not in refused.headers
    large = httpx.post(f"{server}/v1/chat/completions", content=b"x" * (33 * 2**20), headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS)
    assert large.status_code == 413
    unknown = httpx.get(f"{server}/nothing", headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS)
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "not_found"
    assert httpx.get(f"{server}/health", timeout=SECONDS).json() == {"status": "ok"}


def test_a_killed_replica_loses_nothing_that_had_not_begun(server: str) -> None:
    """Requests that are whole only at their end have said nothing before: another replica answers them."""

    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server, headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS) as client:
            asked = [client.post(CHAT, json=question(f"Hello {n}", min_tokens=800, max_tokens=800)) for n in range(24)]
            waiting, pid = asyncio.gather(*asked), pids_of_replicas()[0]
            while "qwen_vl_gateway_in_flight 24.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.05)
            await asyncio.sleep(1)  # for the replicas to have begun
            os.kill(pid, signal.SIGKILL)
            return list(await waiting)

    alone = post(server, question("Hello 0", min_tokens=800, max_tokens=800)).json()["choices"][0]["message"]["content"]
    answers = asyncio.run(ask_all())
    assert [answer.status_code for answer in answers] == [200] * 24
    assert answers[0].json()["choices"][0]["message"]["content"] == alone
    retried = re.search(r"^qwen_vl_gateway_retries_total (\d+)", metrics_of(server), re.M)
    assert retried is not None and float(retried[1]) >= 1
    wait_until(lambda: len(pids_of_replicas()) == 2)  # Ray starts another one


@pytest.mark.parametrize("path", [CHAT, GENERATION])
def test_a_killed_replicas_streams_end_with_an_error(server: str, path: str) -> None:
    wait_until(lambda: len(pids_of_replicas()) == 2)
    headers = {"Authorization": f"Bearer {KEY}", "X-DashScope-SSE": "enable"}
    document = question("Hello", min_tokens=3000, max_tokens=3000, stream=True)
    if path == GENERATION:
        messages = [{"role": "user", "content": [{"text": "Hello"}]}]
        document = {"model": "nano", "input": {"messages": messages}, "parameters": {"max_tokens": 3000, "incremental_output": True, "seed": 1}}
    pids = pids_of_replicas()
    with httpx.stream("POST", f"{server}{path}", json=document, headers=headers, timeout=SECONDS) as stream:
        assert stream.status_code == 200, stream.read()
        lines = stream.iter_lines()
        next(lines)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        told = json.loads([line for line in lines if line][-1].removeprefix("data:"))
    assert told.get("code") == "ServiceUnavailable" if path == GENERATION else told["error"]["code"] == "engine_down"
    wait_until(lambda: httpx.get(f"{server}/health", timeout=SECONDS).status_code == 200 and len(pids_of_replicas()) == 2)


def pids_of_replicas() -> list[int]:
    """Return the processes of replicas that this test has started, and of no other Ray on this machine."""
    found = subprocess.run(["pgrep", "-f", "ray::ServeReplica:qwen-vl:replica"], capture_output=True, text=True, check=False)
    return [pid for pid in map(int, found.stdout.split()) if is_ours(pid)]


def is_ours(pid: int) -> bool:
    """Tell whether a process has inherited this test's mark."""
    try:
        return f"{MARK}={os.getpid()}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return False


def test_a_signal_lets_answers_in_flight_end(tmp_path: Path) -> None:
    with replicas(tmp_path, "--grace", "60") as (url, process):
        document = question("Hello", min_tokens=300, max_tokens=300, stream=True)
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=document, headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: post(url, question("Hello")).json().get("error", {}).get("code") == "shutting_down")
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(60) == 0


def test_after_the_grace_time_answers_end_with_an_error(tmp_path: Path) -> None:
    with replicas(tmp_path, "--grace", "0.5") as (url, process), ThreadPoolExecutor(1) as pool:
        plain = pool.submit(post, url, question("Hi", min_tokens=3000, max_tokens=3000))
        document = question("Hello", min_tokens=3000, max_tokens=3000, stream=True)
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=document, headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS) as stream:
            lines = stream.iter_lines()
            next(lines)
            wait_until(lambda: "qwen_vl_gateway_in_flight 2.0" in metrics_of(url))
            process.send_signal(signal.SIGTERM)
            events = [line for line in lines if line]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
        told = plain.result(SECONDS)
        assert (told.status_code, told.json()["error"]["code"]) == (503, "shutting_down")
        assert process.wait(60) == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with replicas(tmp_path, "--grace", "600") as (url, process):
        document = question("Hello", min_tokens=3000, max_tokens=3000, stream=True, n=8)  # for longer than the signals take
        with httpx.stream("POST", f"{url}{CHAT}", json=document, headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS) as stream:
            next(stream.iter_lines())
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(f"{url}/health", timeout=SECONDS).json()["status"] == "draining")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 130


def test_a_replica_that_loses_its_engine_ends_and_another_answers(tmp_path: Path) -> None:
    flag, port = tmp_path / "flag", free_port()
    flag.touch()
    with serving(tmp_path, port, "tests.integration.dying_replica", str(port), str(flag)) as (url, _):
        before = set(pids_of_replicas())
        answer = post(url, question("Do not die", max_tokens=4))
        assert answer.status_code == 200, answer.text
        assert not flag.exists()
        wait_until(lambda: before - set(pids_of_replicas()))
        assert "qwen_vl_gateway_retries_total 1.0" in metrics_of(url)
        assert httpx.get(f"{url}/health", timeout=SECONDS).json() == {"status": "ok"}
        wait_until(lambda: len(pids_of_replicas()) == 2)


def test_two_replicas_are_measured_beside_one() -> None:
    command = [sys.executable, "-m", "benchmarks.bench_replicas", "--rounds", "1", "--questions", "2", "--tokens", "4", "--clients", "2"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * SECONDS, check=False)
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout.splitlines()[-1])
    (row,) = document["results"]
    assert row["cores"] == document["config"]["cores"] >= 1 and row["ratio"]["median"] > 0
    assert (row["goal"] is None) == (row["cores"] < bench_replicas.CORES_OF_GOAL)


def test_a_benchmark_of_different_answers_ends() -> None:
    class Parrot:
        def __init__(self, word: str) -> None:
            self.word, self.texts = word, dict[int, str]()

        def ask(self, number: int) -> float:
            self.texts[number] = self.word
            return 0.0

    def clients(*words: str) -> Any:
        return dict(enumerate(map(Parrot, words)))

    bench_replicas.expect_same(clients("a", "a"), 3, 2)
    with pytest.raises(SystemExit, match="differ"):
        bench_replicas.expect_same(clients("a", "b"), 3, 2)
