"""The web page: talk with a loaded model about pictures, and see its boxes on them.

mount_page(app, QwenVL.load())   # at the root of a FastAPI application
"""

import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio
from starlette.routing import Mount

from qwen_vl.api import QwenVL
from qwen_vl.serving.decoder import DecoderLimits, DecoderPool
from qwen_vl.serving.service import Service
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.web import bubbles
from qwen_vl.serving.web.actions import Actions
from qwen_vl.serving.web.door import Door
from qwen_vl.serving.web.examples import draw_examples
from qwen_vl.serving.web.pictures import Decode
from qwen_vl.serving.web.sessions import Sessions
from qwen_vl.serving.web.settings import BOX_RULES, LEAST_NEW_TOKENS, MOST_NEW_TOKENS, Defaults
from qwen_vl.serving.web.texts import EN, Texts

if TYPE_CHECKING:
    from fastapi import FastAPI

ASSETS = Path(__file__).parents[2] / "assets" / "web"
UNMEASURED_S = 600.0  # an engine of which nobody knows how long an answer takes has hung after so long
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
MONO_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def build_page(service: Service, *, decode: Decode | None = None) -> gradio.Blocks:
    """Build the page for a server's service.

    Args: decode: makes a picture in RGB of a file's content; None: a pool of processes with limits, which ends with the page.
    """
    pool = None
    if decode is None:
        pool = DecoderPool(DecoderLimits())
        decode = pool.decode
    actions = Actions(service, draw_examples(), decode, Sessions())
    with gradio.Blocks(title="Qwen-VL", analytics_enabled=False, fill_width=True) as page:
        _lay_out(page, actions)
    # Gradio's queue holds nobody up: one more than the service admits comes through, and is told to come again.
    page.max_threads = service.settings.max_running + service.settings.max_waiting + 1
    page.queue(default_concurrency_limit=None, max_size=2 * page.max_threads, api_open=False)
    if pool is not None:
        weakref.finalize(page, pool.close)
    return page


def mount_page(app: "FastAPI", vl: QwenVL, path: str = "/", *, service: Service | None = None) -> "FastAPI":
    """Add the page to an application that does not run yet, behind a door that is open for the page alone: none of Gradio's other routes.

    Args: service: of the server that the application belongs to; None: one of the page's own, which lives as long as the application.
    """
    if service is None:
        service = Service(vl, ServeSettings(watchdog_s=UNMEASURED_S))
        _let_live(app, service)
    gradio.mount_gradio_app(
        app,
        build_page(service),
        path=path,
        theme=gradio.themes.Base(font=FONTS, font_mono=MONO_FONTS, primary_hue="violet", neutral_hue="zinc"),
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        blocked_paths=["/"],  # the page shows pictures as data, so no file need be readable
        favicon_path=str(ASSETS / "favicon.png") if path == "/" else None,
        max_file_size=1,  # byte: pictures come with the question, not through Gradio's upload
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
    )
    mount = app.router.routes[-1]
    if not isinstance(mount, Mount):
        raise TypeError("Gradio was not mounted as the last route")
    app.router.routes[-1] = Door(mount.path, mount.app)
    return app


def _let_live(app: "FastAPI", service: Service) -> None:
    """Let the service begin and end with the application."""
    outer = app.router.lifespan_context

    @asynccontextmanager
    async def live(app: "FastAPI") -> AsyncIterator[Any]:
        async with outer(app) as state:
            await service.start()
            try:
                yield state
            finally:
                await service.close()

    app.router.lifespan_context = live


def _lay_out(page: gradio.Blocks, actions: Actions) -> None:
    """Lay the page out and connect its events."""
    _html(f"<style>{(ASSETS / 'page.css').read_text(encoding='utf-8')}</style>", "style")
    header = _html(bubbles.header_html(actions.model_name, EN), "head")
    with gradio.Row(elem_id="columns"):
        with gradio.Column(elem_id="talk"):
            with gradio.Column(elem_id="conversation"):
                history = _html(actions.welcome(EN), "history")
                live = _html("", "live")
            notice = _html("", "notice")
            composer = _html(bubbles.composer_html(EN), "composer")
            footer = _html(bubbles.footer_html(EN), "foot")
        with gradio.Column(elem_id="look"):
            with gradio.Column(elem_id="stage"):
                picture = _html(actions.no_picture(EN), "picture")
                boxes = _html("", "boxes")
            table = _html("", "list")
    with gradio.Column(elem_id="settings"):
        settings_head = _html(bubbles.settings_head_html(EN), "settings-head")
        controls = _controls(actions.defaults, EN)
        about = _html(bubbles.about_html(EN), "about")
    status = _html("", "status")
    # One component holds the page's script: it hears the browser's events and triggers the handlers, and saves what `parcel` brings.
    parcel = _html(None, "parcel", html_template="", js_on_load="watch('value', () => window.qwenVlSave(props.value));")
    script = _html("", "script", html_template="", js_on_load=(ASSETS / "page.js").read_text(encoding="utf-8"))

    shown = [history, live, picture, boxes, table, notice, status]  # as actions.VIEWS
    framed = [header, composer, footer, settings_head, about]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    async def switch(event: gradio.EventData, request: gradio.Request) -> list[Any]:
        texts, changed = await actions.set_language(event, request)
        head = [bubbles.header_html(actions.model_name, texts), bubbles.composer_html(texts), bubbles.footer_html(texts)]
        return [*changed, *head, bubbles.settings_head_html(texts), bubbles.about_html(texts), *_control_updates(texts)]

    script.ask(actions.ask, inputs=controls, outputs=shown, **quiet)
    script.halt(actions.stop, queue=False, **quiet)
    script.wipe(actions.clear, outputs=shown, queue=False, **quiet)
    script.look(actions.look, outputs=shown, queue=False, **quiet)
    script.save(actions.download, outputs=parcel, **quiet)
    script.speak(switch, outputs=[*shown, *framed, *controls], queue=False, **quiet)
    page.unload(actions.leave)


def _html(value: Any, name: str, **options: Any) -> Any:
    """Make a component of our own HTML: the page's style sheet is all that styles it, and it has no script but the one given."""
    return gradio.HTML(value, elem_id=name, apply_default_css=False, **{"js_on_load": None, **options})


def _controls(defaults: Defaults, texts: Texts) -> list[Any]:
    """Make the controls of the settings, in the order that `Actions.ask` takes."""
    longest = min(MOST_NEW_TOKENS, max(defaults.max_new_tokens, LEAST_NEW_TOKENS) * 4)
    words = _control_words(texts)
    temperature, top_p, length, rule, confidence, seed, as_release = words
    return [
        gradio.Slider(0, 2, defaults.temperature, step=0.05, **temperature),
        gradio.Slider(0.05, 1, defaults.top_p, step=0.05, **top_p),
        gradio.Slider(LEAST_NEW_TOKENS, longest, defaults.max_new_tokens, step=16, **length),
        gradio.Dropdown(value="off", allow_custom_value=True, **rule),
        gradio.Checkbox(True, **confidence),
        gradio.Textbox("", max_lines=1, **seed),
        gradio.Checkbox(False, **as_release),
    ]


def _control_words(texts: Texts) -> list[dict[str, Any]]:
    """Return what the controls say."""
    return [
        {"label": texts.temperature, "info": texts.temperature_info},
        {"label": texts.top_p, "info": texts.top_p_info},
        {"label": texts.max_new_tokens, "info": texts.max_new_tokens_info},
        {"label": texts.box_rule, "info": texts.box_rule_info, "choices": list(zip(texts.box_rules, BOX_RULES, strict=True))},
        {"label": texts.ask_confidence},
        {"label": texts.seed, "info": texts.seed_info},
        {"label": texts.as_release, "info": texts.as_release_info},
    ]


def _control_updates(texts: Texts) -> list[Any]:
    return [gradio.update(**words) for words in _control_words(texts)]
