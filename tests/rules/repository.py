"""Rules of folders and pages, which need no syntax tree."""

import re
from collections.abc import Iterator
from pathlib import Path

MAX_FILES, MAX_README_LINES, MAX_PAGE_LINES = 16, 130, 200
FOLDERS = ("src", "csrc", "tests", "docs")
LOG = "docs/lab"
"""A log of experiments, a file for each topic and date: it only grows, and its files are not rewritten."""


def folders_have_few_files(root: Path) -> Iterator[str]:
    for top in FOLDERS:
        for folder in (root / top, *sorted((root / top).rglob("*"))):
            name = folder.relative_to(root).as_posix()
            if not folder.is_dir() or folder.name == "__pycache__" or f"{name}/".startswith(f"{LOG}/"):
                continue
            count = sum(path.is_file() for path in folder.iterdir())
            if count > MAX_FILES:
                yield f"{name}: has {count} files, over {MAX_FILES}"


def pages_are_short(root: Path) -> Iterator[str]:
    limits = {page: MAX_PAGE_LINES for page in sorted((root / "docs").glob("*.md"))}
    limits[root / "README.md"] = MAX_README_LINES
    for page, limit in limits.items():
        lines = len(page.read_text().splitlines()) if page.exists() else 0
        if lines > limit:
            yield f"{page.relative_to(root).as_posix()}:{lines} is longer than {limit} lines"


def links_lead_somewhere(root: Path) -> Iterator[str]:
    """Links from page to page name a file that exists, and a heading that the file has."""
    for page in (*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))):
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if "://" in link or (target.exists() and (not anchor or anchor in _anchors(target))):
                continue
            yield f"{page.relative_to(root).as_posix()}: nothing is at {link}"


def _anchors(page: Path) -> set[str]:
    """The names of a page's headings, as a link gives them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}
