"""Show the web page: talk about pictures in a browser and see the boxes on them. The server's protocols are there as well.

\b
Examples:
    qwen-vl web --open
    qwen-vl web --model Qwen/Qwen-VL-Chat --port 8080
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from qwen_vl.cli import options
from qwen_vl.cli.serve import KEY_VARIABLE, need_extra, quiet_libraries


def run(
    *,
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for all, which needs API keys")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 for any free one")] = 8000,
    opens: Annotated[bool, typer.Option("--open", help="Open the page in a browser")] = False,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help=f"API keys, one a line; ${KEY_VARIABLE} adds to them")
    ] = None,
    allow_open: Annotated[bool, typer.Option("--allow-open", help="Listen to other machines without API keys")] = False,
) -> None:
    """Show the page."""
    need_extra("fastapi", "uvicorn", "prometheus_client")
    need_extra("gradio", extra="web")
    from qwen_vl.serving.run import serve
    from qwen_vl.serving.security import read_keys
    from qwen_vl.serving.settings import ServeSettings
    from qwen_vl.serving.web.page import mount_page

    keys = read_keys(api_key_file, os.environ.get(KEY_VARIABLE))
    name = (Path(model).resolve().name if Path(model).exists() else model) if model else "nano"
    settings = ServeSettings(model_name=name, host=host, port=port, api_keys=keys, allow_open=allow_open)

    def greet(url: str) -> None:
        typer.echo(f"The page is at {url}. Ctrl-C stops it.", err=True)
        if opens:
            import webbrowser

            webbrowser.open(url)

    quiet_libraries()
    raise typer.Exit(serve(lambda: options.load_model(model, device, dtype), settings, greet=greet, extend=mount_page))
