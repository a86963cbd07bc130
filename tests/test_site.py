"""The docs as a site: it is built without a warning, and has every public name."""

import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest

import scoutattention

DOCS = Path(__file__).parents[1] / "docs"

pytestmark = pytest.mark.slow


def build(docs: Path, to: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(docs), str(to)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_site_has_every_page_and_every_public_name(tmp_path):
    built = build(DOCS, tmp_path)
    assert built.returncode == 0, built.stderr
    for page in DOCS.glob("*.md"):
        assert (tmp_path / f"{page.stem}.html").exists()
    found = set(re.findall(r'id="scoutattention\.(\w+)"', (tmp_path / "api.html").read_text()))
    assert found == set(scoutattention.__all__)


def test_a_link_to_nowhere_is_a_fault(tmp_path):
    docs = copytree(DOCS, tmp_path / "docs")
    (docs / "text.md").write_text("# Text\n\n[gone](python.md#no-such-heading)\n")
    assert "no-such-heading" in build(docs, tmp_path / "site").stderr
