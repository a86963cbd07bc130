"""The house's rules, held over the syntax trees of the sources. Each rule names the offending file and line.

The rules are in `rules/`. An example of what each rule forbids stands beside it here.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import scoutattention

from .rules.imports import (
    environment_is_read_in_few_places,
    errors_are_caught_by_name,
    imports_are_at_the_top,
    imports_have_no_cycle,
    imports_point_down,
    third_parties_use_their_door,
)
from .rules.repository import folders_have_few_files, links_lead_somewhere, pages_are_short
from .rules.sizes import (
    attributes_are_set_when_an_object_is_made,
    classes_have_few_attributes,
    docstrings_say_something,
    files_and_functions_are_small,
    functions_take_few_parameters,
)
from .rules.sources import Source, read_sources

ROOT = Path(scoutattention.__file__).parent
REPOSITORY = Path(__file__).parents[1]

PUBLIC_NAMES = [
    "LLM",
    "Ablation",
    "Answer",
    "CacheFolderError",
    "CalibrationError",
    "CapacityError",
    "Chunk",
    "ConfigError",
    "EngineConfig",
    "KernelError",
    "ModelError",
    "ModelFileError",
    "ModelNotFoundError",
    "Output",
    "PromptError",
    "RankError",
    "SamplingParams",
    "ScoutConfig",
    "ScoutError",
    "Stats",
    "UnsupportedModelError",
    "scout",
]

Rule = Callable[[list[Source]], Iterator[str]]
RULES: dict[Rule, dict[str, str]] = {
    imports_point_down: {"kernels/a.py": "\nfrom ..cache import pool"},
    imports_have_no_cycle: {"cache/a.py": "from .b import x", "cache/b.py": "from . import a"},
    imports_are_at_the_top: {"cache/a.py": "def f():\n    import json"},
    third_parties_use_their_door: {"engine/a.py": "x = 1\nfrom transformers.models import llama"},
    errors_are_caught_by_name: {"cache/a.py": "try:\n    x = 1\nexcept (OSError, Exception):\n    pass"},
    environment_is_read_in_few_places: {"engine/a.py": "import os\nx = os.environ['HOME']"},
    files_and_functions_are_small: {"cache/a.py": "def f():\n" + "    x = 1\n" * 61},
    functions_take_few_parameters: {
        "cache/a.py": "class C:\n    def f(self, a, b, c, *d, e, f, g, **h):\n        pass"
    },
    classes_have_few_attributes: {
        "cache/a.py": "class C:\n    def __init__(self):\n" + "".join(f"        self.a{i} = 0\n" for i in range(13))
    },
    attributes_are_set_when_an_object_is_made: {
        "cache/a.py": "class A:\n    def __init__(self):\n        self.x = 0",
        "cache/b.py": "class B(A):\n    def f(self):\n        self.x, self.y = 1, 2",
    },
    docstrings_say_something: {"cache/a.py": 'def f():\n    """See `g`."""'},
}
REPOSITORY_RULES: dict[Callable[[Path], Iterator[str]], dict[str, str]] = {
    folders_have_few_files: {f"src/a/{number}.py": "" for number in range(17)},
    pages_are_short: {"docs/a.md": "line\n" * 201},
    links_lead_somewhere: {"docs/a.md": "# A word\n[here](#a-word), [there](../b.md#c), [lost](#c)", "b.md": "## C"},
}


def check(offences: list[str]) -> None:
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_sources_keep_the_rule(rule):
    check(list(rule(read_sources(ROOT))))


@pytest.mark.parametrize("rule", REPOSITORY_RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_the_rule(rule):
    check(list(rule(REPOSITORY)))


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(("rule", "files"), RULES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_rule_names_the_offence(rule, files, tmp_path):
    write(tmp_path, files)
    offences = list(rule(read_sources(tmp_path)))
    assert len(offences) == 1
    assert offences[0].startswith(tuple(f"{name}:" for name in files))


@pytest.mark.parametrize(("rule", "files"), REPOSITORY_RULES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_repository_rule_names_the_offence(rule, files, tmp_path):
    write(tmp_path, files)
    offences = list(rule(tmp_path))
    assert len(offences) == 1
    assert offences[0].startswith(("src/a:", "docs/a.md:"))


def test_a_log_may_have_many_files(tmp_path):
    write(tmp_path, {f"docs/lab/{number}.md": "line\n" * 300 for number in range(20)})
    for rule in REPOSITORY_RULES:
        assert not list(rule(tmp_path))


FIELDS = "".join(f"    a{i}: int\n" for i in range(13))


@pytest.mark.parametrize(
    ("head", "method", "allowed"),
    [
        ("@dataclass(frozen=True)\nclass C:\n", "", True),
        ("class C(NamedTuple):\n", "", True),
        ("class C(NamedTuple):\n", "    def with_a(self, a):\n        return self._replace(a0=a)", True),
        ("@dataclass(frozen=True)\nclass C:\n", "    @property\n    def b(self):\n        return 1", True),
        ("@dataclass(frozen=True)\nclass C:\n", "    def run(self):\n        return 1", False),
        ("@dataclass\nclass C:\n", "", False),
        ("class C(Protocol):\n", "", False),
    ],
)
def test_only_records_have_many_attributes(head, method, allowed):
    source = Source("cache/a.py", "", ast.parse(head + FIELDS + method))
    assert (not list(classes_have_few_attributes([source]))) == allowed


def test_kernels_take_many_parameters():
    text = "@triton.jit\ndef kernel(a, b, c, d, e, f, g, h):\n    pass"
    assert not list(functions_take_few_parameters([Source("kernels/triton/a.py", text, ast.parse(text))]))


@pytest.mark.parametrize(
    ("path", "statement"),
    [
        ("attention/a.py", "from ..models.decoder import Decoder"),
        ("kernels/a.py", "from .. import engine"),
        ("config.py", "from .kernels import reference"),
        ("models/a.py", "import scoutattention.cli.app"),
        ("stray.py", "x = 1"),
    ],
)
def test_every_way_up_is_seen(path, statement):
    assert list(imports_point_down([Source(path, statement, ast.parse(statement))]))


def test_native_module_is_seen_however_it_is_imported():
    for text in ("from .. import _native", "import scoutattention._native", "load('scoutattention._native')"):
        assert list(third_parties_use_their_door([Source("cache/a.py", text, ast.parse(text))])), text


def test_public_names():
    assert scoutattention.__all__ == PUBLIC_NAMES
    for name in PUBLIC_NAMES:
        assert getattr(scoutattention, name).__name__ == name
