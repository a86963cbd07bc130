"""Rules of what the sources import, catch and read."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

from .sources import Source

FLOORS = {
    **dict.fromkeys(("errors", "shape", "config", "types"), 0),
    "hardware": 1,
    "trace": 1,
    "runtime": 2,
    "kernels": 3,
    "cache": 4,
    "attention": 5,
    "planner": 5,
    "models": 6,
    "engine": 7,
    "bench": 8,
    "eval": 8,
    "integrations": 8,
    "server": 8,
    "cli": 9,
}
DOORS = {
    "scoutattention._native": ("runtime/workers.py", "hardware/doctor.py"),
    "transformers": (
        "bench/common/transformers_model.py",
        "bench/decode/transformers.py",
        "bench/gpu/transformers.py",
        "integrations/transformers/",
    ),
    "gguf": (),  # tests alone compare with it
    "llama_cpp": ("bench/decode/llama_cpp.py",),
    "tokenizers": (
        "models/text.py",
        "models/formats/gguf_tokenizer.py",
        "models/formats/gguf_sentencepiece.py",
        "models/formats/gguf_splits.py",
    ),
    "llguidance": ("models/structured/json_schema.py",),
    "jinja2": ("models/templates/chat.py", "models/templates/sandbox.py"),
    "huggingface_hub": ("models/hub.py",),
    "httpx": ("models/hub.py", "bench/serve/load.py"),
    "safetensors": (
        "models/formats/safetensors.py",
        "models/calibration.py",
        "models/recording.py",
        "planner/residency.py",
        "engine/prefix/files.py",
    ),
    "torch.distributed": ("runtime/ranks.py",),
    "triton": ("kernels/triton/",),
    "cuda": ("kernels/cuda/",),
    "fastapi": ("server/",),
    "starlette": ("server/",),
    "uvicorn": ("server/",),
    "pydantic": ("server/",),
    "prometheus_client": ("server/", "integrations/vllm/metrics.py"),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "tqdm": ("cli/",),
    "lm_eval": ("integrations/lm_eval.py",),
    "vllm": ("integrations/vllm/",),
    "matplotlib": ("eval/fidelity/plot.py", "eval/retrieval/plot.py", "bench/plot.py"),
}
# The command's settings, where calibrations are stored, and what vLLM says to its processes by nothing else.
ENVIRONMENT = ("cli/", "models/calibration.py", "integrations/vllm/")


def imported(source: Source, node: ast.stmt) -> list[str]:
    """Full names of what an import statement imports; `from m import a` gives m.a."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = source.module.split(".")[: -node.level] if node.level else []
    base = ".".join([*above, *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def all_imports(source: Source) -> Iterator[tuple[int, str]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.stmt):
            yield from ((node.lineno, name) for name in imported(source, node))


def part_of(name: str) -> str | None:
    """The room or word that a full name belongs to: scoutattention.cache.pool.X is in cache."""
    package, _, rest = name.partition(".")
    part = rest.partition(".")[0]
    return part if package == "scoutattention" and part in FLOORS else None


def imports_point_down(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        here = part_of(source.module)
        if source.path == "__init__.py":
            continue
        if here is None:
            yield f"{source.path}:1 stands on no floor: add it to FLOORS"
            continue
        for line, name in all_imports(source):
            there = part_of(name)
            if there and here != there and FLOORS[there] >= max(FLOORS[here], 1):
                yield f"{source.path}:{line} imports {name} from a floor that is not below"


def imports_have_no_cycle(sources: list[Source]) -> Iterator[str]:
    modules = {source.module.removesuffix(".__init__"): source for source in sources if source.path != "__init__.py"}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for module, source in modules.items():
        for _, name in all_imports(source):
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != module:
                graph[module].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"{modules[error.args[1][0]].path}:1 is in a cycle: {' -> '.join(reversed(error.args[1]))}"


def imports_are_at_the_top(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        functions = [n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        for inner in {node for function in functions for node in ast.walk(function)}:
            if isinstance(inner, ast.Import | ast.ImportFrom):
                yield f"{source.path}:{inner.lineno} imports inside a function"


def third_parties_use_their_door(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        strings = [n for n in ast.walk(source.tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        named = [(node.lineno, node.value) for node in strings if node.value in DOORS and "." in node.value]
        for line, name in {*all_imports(source), *named}:
            for package, doors in DOORS.items():
                if f"{name}.".startswith(f"{package}.") and not source.path.startswith(doors):
                    yield f"{source.path}:{line} imports {name}, whose door is {doors or 'nowhere'}"


def errors_are_caught_by_name(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ExceptHandler):
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"Exception"}
                if names & {"Exception", "BaseException"}:
                    yield f"{source.path}:{node.lineno} catches every exception"


def environment_is_read_in_few_places(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for node in ast.walk(source.tree):
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "name", "")
            if name in {"environ", "getenv", "environb", "putenv"} and not source.path.startswith(ENVIRONMENT):
                yield f"{source.path}:{node.lineno} reads the environment"
