"""Take the pictures of the page that the documentation shows: python -m tests.browser.screenshots docs/images"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from qwen_vl.api import QwenVL
from tests.browser.conftest import DEADLINE_MS, NARROW, WIDE, served

# name: (size, language, light or dark, example that is clicked, whether a phrase is pointed at, whether the settings are open)
SHOTS: dict[str, tuple[dict[str, int], str, str, int | None, bool, bool]] = {
    "web_wide_en_light": (WIDE, "en-US", "light", 1, True, False),
    "web_wide_zh_dark": (WIDE, "zh-CN", "dark", 1, False, False),
    "web_empty_en_light": (WIDE, "en-US", "light", None, False, False),
    "web_settings_en_dark": (WIDE, "en-US", "dark", 2, False, True),
    "web_narrow_en_light": (NARROW, "en-US", "light", 2, False, False),
    "web_narrow_zh_dark": (NARROW, "zh-CN", "dark", None, False, False),
}


def take(page: Any, path: Path, example: int | None, points: bool, has_settings: bool) -> None:
    """Bring the page into the state that is shown, and take its picture."""
    if example is not None:
        page.locator(".card").nth(example).click()
        page.wait_for_selector("body:not(.is-busy) [data-action=again]")
    page.mouse.move(5, 5)
    if points:
        page.locator("mark.phrase").nth(1).hover()
    if has_settings:
        page.locator("#head [data-action=settings]").click()
    page.wait_for_timeout(600)  # for the last movement to end
    page.screenshot(path=path)


def main() -> None:
    """Take all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    vl = QwenVL.load(device="cpu")
    with served(vl) as url, sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (size, locale, scheme, example, points, has_settings) in SHOTS.items():
            context = browser.new_context(viewport=size, locale=locale, color_scheme=scheme)
            context.set_default_timeout(DEADLINE_MS)
            page = context.new_page()
            page.goto(url)
            page.wait_for_selector("body.is-ready")
            page.wait_for_function("(language) => document.documentElement.lang.startsWith(language)", arg=locale[:2])
            take(page, out / f"{name}.png", example, points, has_settings)
            context.close()
        browser.close()
    vl.engine.close()


if __name__ == "__main__":
    main()
