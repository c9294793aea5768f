"""The documentation builds without a network, and every link inside of it leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.headings: list[int] = []
        self.bare_images: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := given.get(key))}
        self.links += [value for key in ("href", "src") if (value := given.get(key))]
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img" and (given.get("alt") or given.get("src")) == given.get("src"):  # Sphinx fills in the path
            self.bare_images.append(str(given.get("src")))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, ROOT / "scripts" / "build_docs.py", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]  # every warning of Sphinx is an error
    return out / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, _Page]:
    return {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_all_links_inside_lead_somewhere(site, pages) -> None:
    lost = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name in ("search.html", "genindex.html"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].anchors if target in pages else None
            if not target.exists() or (parts.fragment and known is not None and unquote(parts.fragment) not in known):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert lost == []


def test_course_guides_and_reference_are_there(site, pages) -> None:
    names = {str(path.relative_to(site)) for path in pages}
    course = {f"course/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert len(course) == 16 and course <= names
    assert {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= names
    import dpo_workbench as dw

    anchors = {anchor for page in pages.values() for anchor in page.anchors}
    for home, public in dw._HOMES.items():
        for name in public:
            if callable(getattr(dw, name)):
                assert f"dpo_workbench.{home}.{name}" in anchors, name


def test_headings_are_in_order_and_pictures_have_a_text(site, pages) -> None:
    for path, page in pages.items():
        where = str(path.relative_to(site))
        jumps = [(a, b) for a, b in zip(page.headings, page.headings[1:], strict=False) if b > a + 1]
        assert not jumps, f"{where}: {jumps}"
        assert page.headings.count(1) <= 1, where
        assert not page.bare_images, where
