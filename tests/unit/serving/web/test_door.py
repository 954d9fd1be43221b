"""The door before Gradio: what the page's script asks for, and nothing else."""

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router

from qwen_vl.serving.web.door import Door, is_open


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", ""),
        ("HEAD", "/"),
        ("GET", "/config"),
        ("GET", "/assets/index-DphvyggB.js"),
        ("GET", "/static/js/iframeResizer.contentWindow.min.js"),
        ("GET", "/gradio_api/heartbeat/abc123"),
        ("GET", "/gradio_api/queue/data"),
        ("POST", "/gradio_api/queue/join"),
        ("POST", "/gradio_api/run/predict"),
    ],
)
def test_the_page_gets_what_it_needs(method: str, path: str) -> None:
    assert is_open(method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/"),
        ("PUT", "/gradio_api/queue/join"),
        ("GET", "/gradio_api/queue/join"),
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/heartbeat/a/b"),
        ("GET", "/assets/../config"),
        ("GET", "/assets/a\nb"),
        ("GET", "/config\n"),
        ("GET", "/gradio_api/proxy=http://example.org"),
        ("POST", "/gradio_api/run/answer"),
        ("GET", "//example.org"),
    ],
)
def test_nothing_else_is_open(method: str, path: str) -> None:
    assert not is_open(method, path)


async def page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html; charset=utf-8")]})
    await send({"type": "http.response.body", "body": b"page"})


async def health(request: Request) -> Response:
    return Response(b"well")


def knock(method: str, path: str, *, at: str = "") -> tuple[int, dict[str, str], bytes]:
    """Ask an application that has one route of its own and the page, and return status, headers and body."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    router = Router([Route("/health", health), Door(at, page)])
    asyncio.run(router({"type": "http", "method": method, "path": path, "root_path": "", "query_string": b"", "headers": []}, receive, send))
    return sent[0]["status"], {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}, sent[1]["body"]


@pytest.mark.parametrize(("at", "path"), [("", "/"), ("", "/config"), ("/talk", "/talk/"), ("/talk", "/talk/config")])
def test_pages_keep_the_browser_here(at: str, path: str) -> None:
    status, headers, body = knock("GET", path, at=at)
    assert (status, body) == (200, b"page")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/health", 200), ("POST", "/health", 405), ("GET", "/nowhere", 404), ("GET", "/gradio_api/info", 404)]
)
def test_other_paths_are_answered_by_their_own_routes(method: str, path: str, status: int) -> None:
    found, headers, body = knock(method, path)
    assert found == status
    assert b"page" not in body
    assert "content-security-policy" not in headers


def test_sockets_find_nothing() -> None:
    assert Door("", page).matches({"type": "websocket", "path": "/", "root_path": ""})[0] is Match.NONE
