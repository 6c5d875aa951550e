"""A real browser for tests: the system's Chromium, driven by Playwright; tests skip where one of them is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

TIMEOUT_MS = 15_000  # of a single step: a missing element must not wait out the test's own limit
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def _path() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium. Raises ImportError without Playwright, and Playwright's Error without a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=_path())
        yield started
        started.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for the tests of a module. Not for the session: Playwright's event loop would be in others' way."""
    if _path() is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium` lets the browser tests run")
    pytest.importorskip(
        "playwright.sync_api", reason="Playwright is missing: `pip install playwright` lets the browser tests run"
    )
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh page of 1280 x 900. Errors in its console and uncaught exceptions fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    errors: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", dismiss)
    yield page
    context.close()
    assert not errors, errors
