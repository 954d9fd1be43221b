"""The import table: arrows between the packages never turn back, and each guarded door has one door-keeper.

Reads the sources with `ast`, so it needs nothing installed and sees imports inside functions too.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "qwen_vl"
OURS = "qwen_vl"
LEAVES = {"grounding", "prompt", "picturebook", "processing", "modeling"}

# package or module -> (packages of ours, libraries) that it may import besides itself, the standard library and `errors`.
TABLE: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "lock": (set(), set()),
    "whole": ({"lock"}, {"safetensors"}),
    "surroundings": (set(), {"torch"}),
    "checkpoint_facts": ({"modeling"}, set()),
    "_register": ({"modeling", "processing", "quantization"}, {"transformers"}),
    "__main__": ({"cli"}, set()),
    "grounding": ({"prompt"}, {"numpy", "PIL"}),
    "prompt": ({"grounding"}, {"numpy", "PIL"}),
    "picturebook": ({"whole", "prompt", "grounding"}, {"numpy", "PIL"}),
    "processing": ({"prompt", "grounding"}, {"torch", "transformers", "PIL", "tiktoken", "numpy"}),
    "modeling": (set(), {"torch", "transformers", "safetensors"}),
    "engine": ({"modeling"}, {"torch"}),
    "quantization": ({"modeling", "whole"}, {"torch", "transformers", "safetensors"}),
    "api": (
        {"checkpoint_facts", "processing", "prompt", "grounding", "modeling", "engine", "quantization"},
        {"torch", "transformers", "huggingface_hub", "PIL"},
    ),
    "training": (
        {"lock", "whole", "surroundings", "processing", "prompt", "grounding", "modeling", "quantization", "picturebook"},
        {"torch", "transformers", "tokenizers", "peft", "accelerate", "deepspeed", "tensorboard", "matplotlib", "safetensors", "numpy", "PIL"},
    ),
    "evaluation": (LEAVES | {"api", "lock", "whole", "surroundings"}, {"torch", "numpy", "PIL", "rapidfuzz", "openai"}),
    "profiling": ({"surroundings", "modeling", "engine", "quantization", "api"}, {"torch", "transformers"}),
    "serving": (
        LEAVES | {"api"},
        {"torch", "fastapi", "starlette", "anyio", "uvicorn", "h11", "pydantic", "prometheus_client", "gradio", "ray", "PIL"},
    ),
}
FREE = {"cli"}  # may import anything, but only inside its functions
HTTP_CLIENTS = {"requests", "httpx", "httpx2", "aiohttp", "urllib3", "urllib.request", "http.client", "socket", "ftplib"}
FETCHER = "processing/fetch.py"
LISTENER = "serving/run.py"  # takes connections and makes none: of `socket` it may have names, but not these
DIALLING = {"connect", "connect_ex", "create_connection", "getaddrinfo", "gethostbyname", "socketpair", "fromfd"}
DECODER = "processing/decoding.py"
PATH_HELPERS = {"url2pathname", "pathname2url"}  # of urllib.request: they fetch nothing
PICKLES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
PICKLE_NAMES = {"pickle.UnpicklingError"}  # what torch raises may be named
LIGHT = {"typer", "click", "rich"}  # what the command line may load before it knows its subcommand

FILES = sorted(SRC.rglob("*.py"))


def relative(path: Path) -> str:
    """Return the path below src/qwen_vl, with forward slashes."""
    return path.relative_to(SRC).as_posix()


def package_of(path: Path) -> str:
    """Return the first component below src/qwen_vl: the row of the table."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def absolute_module(node: ast.ImportFrom, path: Path) -> str:
    """Return the full name that a `from ... import` names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    package = (OURS, *path.relative_to(SRC).parts[:-1])
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def modules_of(node: ast.stmt, path: Path) -> Iterator[str]:
    """Yield every module name that one import statement may load."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = absolute_module(node, path)
        if module == "urllib.request" and {alias.name for alias in node.names} <= PATH_HELPERS:
            return
        yield module
        if module == OURS or "." not in module:  # `from qwen_vl import api`, `from urllib import request` name modules too
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_type_checking(node: ast.stmt) -> bool:
    """Tell whether this is `if TYPE_CHECKING:`, whose body never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports(path: Path, *, module_level: bool = False) -> Iterator[str]:
    """Yield the imported names of a file; with `module_level` only those that importing the file runs."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from modules_of(node, path)
        if module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if module_level and isinstance(node, ast.stmt) and is_type_checking(node):
            continue
        pending.extend(ast.iter_child_nodes(node))


def refused_by_table(path: Path) -> list[str]:
    """Return the imports of a file that its row of the table does not allow."""
    package = package_of(path)
    ours, libraries = TABLE[package]
    refused = []
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == OURS:
            target = rest.partition(".")[0]
            is_package = (SRC / target).is_dir() or (SRC / f"{target}.py").is_file()
            if target and is_package and target not in ours | {package, "errors"}:
                refused.append(name)
        elif top not in sys.stdlib_module_names and top not in libraries:
            refused.append(name)
    return refused


def test_every_package_has_a_row() -> None:
    assert {package_of(path) for path in FILES} - set(TABLE) - FREE - {"__init__"} == set()


@pytest.mark.parametrize("path", [p for p in FILES if package_of(p) in TABLE], ids=relative)
def test_imports_follow_the_table(path: Path) -> None:
    assert refused_by_table(path) == [], "STYLE section 1 says what each package may import"


@pytest.mark.parametrize("path", [p for p in FILES if package_of(p) in FREE | {"__init__"}], ids=relative)
def test_start_is_light(path: Path) -> None:
    heavy = {
        name
        for name in imports(path, module_level=True)
        if not name.startswith(OURS) and name.partition(".")[0] not in sys.stdlib_module_names and name.partition(".")[0] not in LIGHT
    }
    assert heavy == set(), "import inside the command function, so that --help stays quick"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_one_media_loader(path: Path) -> None:
    if relative(path) != FETCHER:
        listening = {"socket"} if relative(path) == LISTENER else set()
        assert set(imports(path)) & HTTP_CLIENTS == listening, f"only {FETCHER} fetches"
        attributes = [node for node in nodes_of(path) if isinstance(node, ast.Attribute)]
        smuggled = [node for node in attributes if node.attr == "socket" and isinstance(node.value, ast.Name) and node.value.id != "socket"]
        assert not smuggled, "by way of another module is no way"
        assert not listening or not {node.attr for node in attributes} & DIALLING, f"only {FETCHER} fetches"
    if relative(path) != DECODER:
        opened = [node for node in nodes_of(path) if is_call_of(node, "Image.open", "PIL.Image.open")]
        assert opened == [], f"only {DECODER} opens pictures: use processing.images.load_image"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_pickle(path: Path) -> None:
    assert ({name.partition(".")[0] for name in imports(path)} - {"pickle"}) & PICKLES == set()
    used = {ast.unparse(node) for node in nodes_of(path) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"}
    used |= {name for name in imports(path) if name.startswith("pickle.")}
    assert used <= PICKLE_NAMES
    loads = [node for node in nodes_of(path) if is_call_of(node, "torch.load", "torch.save")]
    assert loads == [], "safetensors only; released .bin shards are read by modeling/stored.py alone"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_assert(path: Path) -> None:
    lines = [node.lineno for node in nodes_of(path) if isinstance(node, ast.Assert) and not narrows_a_type(node)]
    assert lines == [], "python -O strips asserts: raise one of qwen_vl.errors"


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Return every node of a file."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def narrows_a_type(node: ast.Assert) -> bool:
    """Tell whether this is `assert x is not None`, which tells the type checker what the lines above made sure of."""
    test = node.test
    return isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot) and ast.unparse(test.comparators[0]) == "None"


def is_call_of(node: ast.AST, *names: str) -> bool:
    """Tell whether the node calls one of the dotted names."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) in names


@pytest.mark.parametrize("module", ["checkpoint_facts", "cli", "errors", "lock", "whole", "grounding", "prompt", "picturebook"])
def test_needs_no_torch(module: str) -> None:
    if not (SRC / module).exists() and not (SRC / f"{module}.py").exists():
        pytest.fail(f"qwen_vl.{module} is gone: update this list")
    code = f"import sys; import qwen_vl.{module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SRC.parent)})
    assert run.stdout.strip() == "[]"


def test_the_reader_sees_what_it_must(tmp_path: Path) -> None:
    """The checks above can fail: lazy, relative and aliased imports are all seen."""
    folder = SRC / "grounding"
    code = "import torch as t\nfrom urllib import request\ndef f():\n    from ..modeling import x\n    from qwen_vl import api\n"
    tree = ast.parse(code)
    seen = {name for node in ast.walk(tree) if isinstance(node, ast.stmt) for name in modules_of(node, folder / "new.py")}
    assert {"torch", "urllib.request", "qwen_vl.modeling", "qwen_vl.api"} <= seen
