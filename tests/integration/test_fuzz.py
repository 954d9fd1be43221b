"""Whatever the OpenAPI document allows, and much that it forbids, is answered without a failure of the server (Schemathesis).

Two thousand requests at each run, and by hand as many as one likes:

    python -m tests.integration.test_fuzz 50000

A third of them name the right model and ask for little, so that they reach the engine and not only the first check.
"""

import copy
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

from tests.integration.bad_pictures import GOOD, uri
from tests.integration.serving import LEAKS, Server, start_server

CHAT, COMPLETIONS = ("POST", "/v1/chat/completions"), ("POST", "/v1/completions")
GENERATION = ("POST", "/api/v1/services/aigc/multimodal-generation/generation")
SHARES = {CHAT: 0.4, COMPLETIONS: 0.15, GENERATION: 0.2}  # of the requests; the other routes share the rest
Route = tuple[str, str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(tmp_path_factory.mktemp("server")) as found:
        yield found


def routes_of(document: dict[str, Any]) -> list[Route]:
    return [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]


WORDS = {"type": "string", "pattern": "^[a-z狗 ]{3,20}$"}
FEW = {"enum": [1, 2]}
NEVER_USED = ("max_completion_tokens", "min_tokens", "top_k", "logit_bias", "tool_choice", "function_call", "tools", "functions", "response_format")


def deepened(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with little choice where a random one ends at the first check, or takes minutes to answer."""
    found = copy.deepcopy(document)
    schemas = found["components"]["schemas"]
    schemas["Parameters"]["properties"] = {"seed": {"type": "integer", "minimum": 0, "maximum": 9}, "incremental_output": {"type": "boolean"}}
    for name in ("ChatCompletionRequest", "CompletionRequest", "Parameters"):
        fields = schemas[name]["properties"]
        for each in NEVER_USED:
            fields.pop(each, None)
        fields |= {"max_tokens": FEW, "n": FEW, "boxes": {"enum": ["any", "1..2", None]}}
        schemas[name]["required"] = [*schemas[name].get("required", []), "max_tokens"]
    for name in ("ChatCompletionRequest", "CompletionRequest", "GenerationRequest"):
        schemas[name]["properties"]["model"] = {"const": "nano"}
    schemas["GenerationRequest"]["required"] = [*schemas["GenerationRequest"]["required"], "parameters"]
    schemas["ImageURL"]["properties"]["url"] = {"enum": [uri(GOOD), "oss://x/y.png", "data:image/png;base64,AAAA", "/etc/passwd"]}
    schemas["TextPart"]["properties"]["text"] = WORDS
    parts = [{"$ref": "#/components/schemas/TextPart"}, {"$ref": "#/components/schemas/ImagePart"}]
    schemas["UserMessage"]["properties"]["content"] = {"anyOf": [WORDS, {"type": "array", "minItems": 1, "maxItems": 3, "items": {"anyOf": parts}}]}
    schemas["ChatCompletionRequest"]["properties"]["messages"] = one(schemas["UserMessage"])
    schemas["Part"] = {"type": "object", "properties": {"text": WORDS}, "required": ["text"], "additionalProperties": False}
    content = {"type": "array", "minItems": 1, "maxItems": 3, "items": schemas["Part"]}
    said = {"role": {"const": "user"}, "content": {"anyOf": [WORDS, content]}}
    schemas["Message"] = {"type": "object", "properties": said, "required": list(said), "additionalProperties": False}
    schemas["Input"]["properties"]["messages"] = one(schemas["Message"])
    return found


def one(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a list of one."""
    return {"type": "array", "minItems": 1, "maxItems": 1, "items": schema}


class Tally:
    """What came back: no 5xx, no leak, and errors in their form."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.statuses: Counter[tuple[Route, int]] = Counter()

    def send(self, route: Route, case: Any) -> None:
        arguments = case.as_transport_kwargs(base_url=self.server.url)
        # The key must not be lost in what is made up; everything else goes as it comes.
        headers = {name: value for name, value in dict(arguments.get("headers") or {}).items() if name.lower() != "authorization"}
        try:
            request = self.server.client.build_request(
                arguments["method"],
                arguments["url"],
                params=arguments.get("params"),
                headers=headers,
                json=arguments.get("json"),
                content=arguments.get("data"),
                files=arguments.get("files"),
            )
            request.read()  # a form's fields are written only here
        except (AttributeError, TypeError, ValueError, httpx.InvalidURL):
            return  # the client cannot say it
        response = self.server.client.send(request)
        self.statuses[route, response.status_code] += 1
        assert response.status_code < 500, f"{route}: {response.text[:500]} after {request.content[:2000]!r}"
        if response.headers.get("content-type") == "application/json" and response.status_code >= 400:
            assert LEAKS.search(response.text) is None, response.text
            assert set(response.json()) in ({"error"}, {"request_id", "code", "message"})

    @property
    def total(self) -> int:
        return sum(self.statuses.values())


def fuzz(tally: Tally, operation: Any, route: Route, mode: GenerationMode, num_cases: int, number: int) -> None:
    """Send so many requests to a route."""

    @seed(number)
    @settings(max_examples=num_cases, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        tally.send(route, case)

    send()


def run(server: Server, num_cases: int) -> Tally:
    """Spread the cases over routes, allowed and forbidden ones, and both documents."""
    document = server.client.get("/openapi.json").json()
    schemas = [schemathesis.openapi.from_dict(each) for each in (document, deepened(document))]
    tally = Tally(server)
    routes = routes_of(document)
    others = (1 - sum(SHARES.values())) / (len(routes) - len(SHARES))
    for route in routes:
        count = max(2, round(num_cases * SHARES.get(route, others) / 3))
        for number, (schema, mode) in enumerate(
            [(schemas[0], GenerationMode.NEGATIVE), (schemas[0], GenerationMode.POSITIVE), (schemas[1], GenerationMode.POSITIVE)]
        ):
            try:
                fuzz(tally, schema[route[1]][route[0]], route, mode, count, number)
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE  # a route without fields has none to forbid
    server.wait_idle()
    return tally


def check(tally: Tally, num_cases: int) -> None:
    print(f"{tally.total} requests: {dict(sorted((f'{m} {p} {s}', n) for ((m, p), s), n in tally.statuses.items()))}")  # noqa: T201
    assert tally.total > 0.8 * num_cases
    # Requests that are allowed reach the engine: a fuzzer that is always refused shows nothing.
    assert tally.statuses[CHAT, 200] > 0.02 * num_cases
    assert tally.statuses[GENERATION, 200] > 0.005 * num_cases
    assert tally.server.ask().status_code == 200


def test_two_thousand_requests(server: Server) -> None:
    check(run(server, 2000), 2000)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, start_server(Path(folder)) as started:
        check(run(started, int(sys.argv[1])), int(sys.argv[1]))
