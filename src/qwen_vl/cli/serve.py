"""Serve a model to OpenAI's and DashScope's clients, on this machine unless told otherwise.

\b
Examples:
    qwen-vl serve
    qwen-vl serve --model Qwen/Qwen-VL-Chat --host 0.0.0.0 --api-key-file keys.txt
    qwen-vl serve --model Qwen/Qwen-VL-Chat --replicas 2 --gpus-per-replica 1
"""

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_vl.cli import options

if TYPE_CHECKING:
    from qwen_vl.api import QwenVL

KEY_VARIABLE = "QWEN_VL_API_KEY"


def run(
    *,
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for all, which needs API keys")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 for any free one")] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="What clients call the model [default: the model's own name]")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help=f"API keys, one a line; ${KEY_VARIABLE} adds to them")
    ] = None,
    allow_open: Annotated[bool, typer.Option("--allow-open", help="Listen to other machines without API keys")] = False,
    web: Annotated[bool, typer.Option("--web", help="Show the web page at / as well")] = False,
    fetch_from: Annotated[
        list[str] | None, typer.Option("--fetch-from", metavar="HOST", help="Fetch pictures by address from this host [default: from none]")
    ] = None,
    box_tags: Annotated[bool, typer.Option("--box-tags", help="Read <ref>, <box> and <quad> in clients' texts as the model's own tokens")] = False,
    max_context: Annotated[int | None, typer.Option("--max-context", metavar="N", help="Tokens of prompt and answer [default: the model's]")] = None,
    max_running: Annotated[int, typer.Option("--max-running", metavar="N", help="Answers that are written at once")] = 16,
    max_waiting: Annotated[int, typer.Option("--max-waiting", metavar="N", help="Requests that may wait; more are told to come again")] = 64,
    kv_cache: Annotated[
        int | None, typer.Option("--kv-cache", metavar="MIB", help="Memory for answers that are written [default: half of what the model leaves]")
    ] = None,
    prefix_cache: Annotated[
        int | None,
        typer.Option("--prefix-cache", metavar="MIB", help="Memory for beginnings of prompts; 0 keeps none [default: a tenth, up to 4096]"),
    ] = None,
    feature_cache: Annotated[
        int | None, typer.Option("--feature-cache", metavar="MIB", help="Memory for pictures seen; 0 keeps none [default: a twentieth, up to 256]")
    ] = None,
    grace: Annotated[float, typer.Option("--grace", metavar="SECONDS", help="For answers in flight when the server is told to stop")] = 10.0,
    watchdog: Annotated[
        float | None,
        typer.Option(
            "--watchdog",
            metavar="SECONDS",
            help="An engine that does nothing for so long, with work to do, ends the server [default: 10, or ten times what a small answer takes]",
        ),
    ] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", metavar="N", help="Serve with N copies of the model, on Ray Serve")] = None,
    max_replicas: Annotated[
        int | None, typer.Option("--max-replicas", metavar="N", help="Start more copies under load, up to N [default: as --replicas]")
    ] = None,
    cpus_per_replica: Annotated[float, typer.Option("--cpus-per-replica", metavar="X", help="Processors that Ray reserves for each copy")] = 1.0,
    gpus_per_replica: Annotated[float, typer.Option("--gpus-per-replica", metavar="X", help="GPUs, or a share of one, for each copy")] = 0.0,
) -> None:
    """Serve."""
    need_extra("fastapi", "uvicorn", "prometheus_client")
    from qwen_vl.errors import ConfigError
    from qwen_vl.serving.run import serve
    from qwen_vl.serving.security import read_keys
    from qwen_vl.serving.settings import MIB, ServeSettings

    settings = ServeSettings(
        model_name=name or (Path(model).resolve().name if model and Path(model).exists() else model) or "nano",
        host=host,
        port=port,
        api_keys=read_keys(api_key_file, os.environ.get(KEY_VARIABLE)),
        allow_open=allow_open,
        allowed_hosts=frozenset(fetch_from or ()),
        box_tags=box_tags,
        max_context=max_context,
        max_running=max_running,
        max_waiting=max_waiting,
        max_choices=min(8, max_running),
        grace_s=grace,
        watchdog_s=watchdog,
    )
    caches = {"kv_bytes": kv_cache, "prefix_bytes": prefix_cache, "feature_bytes": feature_cache}
    engine = {"max_batch": max_running} | {bound: size * MIB for bound, size in caches.items() if size is not None}
    extend: Any = None
    if web:
        need_extra("gradio", extra="web")
        from qwen_vl.serving.web.page import mount_page

        extend = mount_page

    def greet(url: str) -> None:
        typer.echo(f"{settings.model_name} answers at {url}/v1{' and shows its page at ' + url if web else ''}. Ctrl-C stops it.", err=True)

    quiet_libraries()
    if replicas is not None:
        if web:
            raise ConfigError("--web shows the page of one process. Leave it out, or run: qwen-vl web")
        need_extra("ray", extra="scale")
        from qwen_vl.serving.scale.run import ScaleSettings, serve_replicas

        scale = ScaleSettings(replicas=replicas, max_replicas=max_replicas, cpus=cpus_per_replica, gpus=gpus_per_replica)
        raise typer.Exit(serve_replicas(partial(load_quietly, model, device, dtype, **engine), settings, scale, greet=greet))
    raise typer.Exit(serve(lambda: options.load_model(model, device, dtype, **engine), settings, greet=greet, extend=extend))


def need_extra(*modules: str, extra: str = "serve") -> None:
    """Raise ConfigError, naming the extra, if one of the modules is not installed."""
    import importlib.util

    from qwen_vl.errors import ConfigError

    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise ConfigError(f'{missing[0]} is not installed. Install what serving needs: pip install "qwen-vl[{extra}]"')


def quiet_libraries() -> None:
    """Let the libraries' logs through from warnings on; an access log would say who asked."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def load_quietly(model: str | None, device: str | None, dtype: str | None, **engine: Any) -> "QwenVL":
    """Load the model in a replica, whose progress nobody watches."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return options.load_model(model, device, dtype, **engine)
