"""Chromium, and what a person does at the site's page; everything that a browser complains about is kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120_000
"""Milliseconds that a job of a toy may take on a busy machine."""


@dataclass
class Visitor:
    """Somebody who looks at one site's page."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    """What the console said, and requests to other hosts."""

    def go(self, path: str) -> None:
        """Open a page and wait until it is shown."""
        self.page.goto(f"{self.url}/#{path}")
        expect(self.page.locator(f'main[data-path="{path}"]:not([aria-busy]) h1')).to_be_visible()

    def shown(self) -> None:
        """Wait until a page is shown."""
        expect(self.page.locator("main:not([aria-busy]) h1")).to_be_visible()

    def sign_in(self, token: str) -> None:
        """Sign in with a token."""
        self.page.goto(f"{self.url}/")
        self.page.get_by_label("Token").fill(token)
        self.press("Sign in")
        expect(self.page.get_by_role("heading", level=1, name="Overview")).to_be_visible()

    def press(self, name: str, within: Locator | None = None) -> None:
        """Press a button, or what looks like one."""
        (within or self.page).get_by_role("button", name=name, exact=True).click()

    def card(self, title: str) -> Locator:
        """The part of the page with a title."""
        return self.page.locator("section", has=self.page.get_by_role("heading", level=2, name=title, exact=True))

    def job_done(self, state: str = "done") -> None:
        """Wait for the end of the job whose page is shown."""
        expect(self.page.locator("main h1")).to_contain_text(state, timeout=PATIENCE)

    def download(self, name: str, to: Path) -> Path:
        """Press something that saves a file."""
        with self.page.expect_download() as found:
            self.page.locator("a, button").get_by_text(name, exact=True).or_(
                self.page.get_by_text(name, exact=True)
            ).first.click()
        found.value.save_as(to)
        return to

    def heading(self) -> str:
        """The page's heading."""
        return " ".join(self.page.locator("main h1").inner_text().split())


@contextmanager
def visiting(browser: Browser, url: str, **context: Any) -> Iterator[Visitor]:
    """A visitor with a browser of their own; at the end nothing must have gone wrong in it."""
    opened = browser.new_context(locale="en-GB", timezone_id="Europe/Berlin", accept_downloads=True, **context)
    opened.set_default_timeout(20_000)
    visitor = Visitor(opened.new_page(), url)
    own = urlsplit(url).netloc

    def request(sent: Any) -> None:
        parts = urlsplit(sent.url)
        if parts.scheme not in ("blob", "data") and parts.netloc != own:
            visitor.complaints.append(f"request to {sent.url}")

    visitor.page.on("request", request)
    visitor.page.on("console", lambda said: said.type in ("error", "warning") and visitor.complaints.append(said.text))
    visitor.page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
    try:
        yield visitor
        assert not visitor.complaints, visitor.complaints
    finally:
        opened.close()


def expected(visitor: Visitor, pattern: str) -> None:
    """Take complaints that the test has provoked from the list; there must be one."""
    found = [text for text in visitor.complaints if re.search(pattern, text)]
    assert found, (pattern, visitor.complaints)
    visitor.complaints[:] = [text for text in visitor.complaints if text not in found]
