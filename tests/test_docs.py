"""Links between the project's pages lead somewhere, and so do the pages that the source names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
SOURCES = sorted(
    path
    for folder, ending in (("plant_dist", "py"), ("benchmarks", "py"), ("configs", "yaml"))
    for path in (ROOT / folder).rglob(f"*.{ending}")
)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)


def anchor(heading: str) -> str:
    """A heading's anchor as GitHub makes it: letters, digits, hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {anchor(heading) for heading in HEADING.findall(prose)}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target, part in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (part and part not in anchors(path)):
            broken.append(f"{target}#{part}")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# Some words, `code`: and 2\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md#some-words-code-and-2) [b](https://example.org/x.md#y)\n## Here\n"
                    "[c](#here) [d](gone.md) [e](there.md#no-heading) [f](#nowhere)\n")  # fmt: skip
    assert broken_links(page) == ["gone.md#", "there.md#no-heading", "#nowhere"]


def test_pages_that_the_source_names_exist() -> None:
    named = {
        (name, path.relative_to(ROOT))
        for path in SOURCES
        for name in re.findall(r"\bdocs/[\w./]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert named, "no source names a page: the pattern is out of date"
    assert [(name, path) for name, path in sorted(named) if not (ROOT / name).exists()] == []
