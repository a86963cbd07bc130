"""One meaning a word: public names use words of docs/glossary.md, and retired words are in no identifier."""

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import scoutattention
from scoutattention import EngineConfig, SamplingParams, ScoutConfig
from scoutattention.config import Ablation

ROOT = Path(scoutattention.__file__).parent
GLOSSARY = Path(__file__).parents[1] / "docs/glossary.md"

WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
TERM = re.compile(r"^\| \*\*(.+?)\*\*(.*?)\|", re.MULTILINE)
"""A term in the first column, and what may stand beside it there."""

PLAIN_WORDS = """
action answer app base build capacity case chat check code command common compare correct description drawing error
evaluate exact explore file flag folder form found function generate hardware idle ignore input job join known line
list load local make measure meter method miss move not number on penalty plot problem process reader refusal
repetition reply report request resolve result retrieval round row rule run score security seed sending setting setup
shape sources stage state stop store table task text timing trace type watch word work write picture
"""
"""Words with their meaning in a dictionary."""
FIELD_WORDS = """
attention backend bench bias cache calibrate choice choose cli compile decode decoder dir doctor dtype dummy eos eval
factor fetch fidelity field fingerprint format frequency graph init instructions integration inverse k kernel key kv
layer len linear loader logit logprob metadata metric model n native num ops p parallel param pinned plain policy
precompile predict
presence product profiler prompt queries query recorder reference resolve rope runner runtime sampler sandbox scaling
scheduler schema sentencepiece seq serve server session shell size softmax spec stream structured temperature template
tensor token tokenizer unsupported vocabulary worker
"""
"""Words of programming and of language models, as their libraries use them."""
PROJECTS = "chrome cpp cuda gguf gpu html hub json llama lm safetensors torch transformers triton vllm"
"""Other projects, formats and devices."""

RETIRED = {
    "thrift": "CPU share limit",
    "mover": "recall",
    "rehearse": "trial",
    "rehearsal": "trial",
    "seat": "give a slot",
    "sift": "split_choice",
    "blend": "update_interest",
    "doubt": "scout_error",
    "roomy": "all_resident",
    "crowded": "has_absent",
    "machine": "engine_config, or host",
    "rank": "dims, unless it is a process",
}
"""Words that have gone, and what to say instead."""
KEPT = {"Ranks", "ranks", "_ranks", "RankError", "global_ranks_in_group", "rank_in_group"}  # processes
KEPT |= {"fit_low_rank"}  # the field's word for a matrix


def words_of(name: str) -> list[str]:
    """max_cpu_share and MaxCPUShare are both max, cpu, share."""
    return [word.lower() for word in WORD.findall(name)]


def singular(word: str) -> str:
    return word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word


def glossary_words(text: str) -> set[str]:
    """The words of all terms, and of names in code that stand beside one."""
    return {singular(word) for term in TERM.findall(text) for word in words_of(" ".join(term))}


def public_names() -> Iterator[str]:
    """What users and readers meet first: exported names, settings, and names of files and folders."""
    yield from scoutattention.__all__
    for settings in (ScoutConfig, Ablation, EngineConfig, SamplingParams):
        yield from (field.name for field in fields(settings))
    for path in ROOT.rglob("*"):
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__"):
            yield path.stem


def unknown_words(names: set[str], known: set[str]) -> dict[str, str]:
    """Words that are not known, with a name that has each."""
    return {word: name for name in sorted(names) for word in words_of(name) if singular(word) not in known}


def retired_in(path: Path, root: Path) -> Iterator[str]:
    """Places of identifiers with a retired word: file, line, name, and what to say instead."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.NAME and token.string not in KEPT:
            for word in words_of(token.string):
                stem = singular(word).removesuffix("ed").removesuffix("ing")
                if instead := RETIRED.get(singular(word)) or RETIRED.get(stem):
                    place = f"{path.relative_to(root).as_posix()}:{token.start[0]}"
                    yield f"{place} says {token.string}: {word} is retired, say {instead}"


def all_retired(root: Path) -> list[str]:
    return [
        line
        for path in sorted(root.rglob("*.py*"))
        if path.suffix in {".py", ".pyi"}
        for line in retired_in(path, root)
    ]


def test_public_names_use_words_with_one_meaning():
    allowed = " ".join((PLAIN_WORDS, FIELD_WORDS, PROJECTS)).split()
    known = glossary_words(GLOSSARY.read_text()) | {singular(word) for word in allowed}
    unknown = unknown_words(set(public_names()), known)
    assert not unknown, "\n".join(f"{word!r} of {name!r}: add it to docs/glossary.md" for word, name in unknown.items())


def test_retired_words_are_in_no_identifier():
    found = all_retired(ROOT)
    assert not found, "\n".join(found)


def test_a_name_with_an_unknown_word_is_found():
    text = "| **CPU share limit** (`limit`) | the largest |\n| **to give a slot** | |\n"
    known = glossary_words(text)
    assert known == {"cpu", "share", "limit", "to", "give", "a", "slot"}
    assert unknown_words({"give_slots", "CPULimit", "thrift_limit"}, known) == {"thrift": "thrift_limit"}


@pytest.mark.parametrize(
    "text", ["thrift = 1", "def f(doubts): ...", "class SeatTable: ...", "low_rank = 1", "ranked = 1", "x.sifted()"]
)
def test_a_retired_word_is_found_wherever_it_stands(text, tmp_path):
    (tmp_path / "a.py").write_text(f"\n{text}\n")
    (offence,) = all_retired(tmp_path)
    assert offence.startswith("a.py:2 says")


@pytest.mark.parametrize("text", ["# a thrift shop", "x = 'sift'", "ranks = MemoryPlan()", "planet = frank = 1"])
def test_other_words_are_not(text, tmp_path):
    (tmp_path / "a.py").write_text(text + "\n")
    assert not all_retired(tmp_path)
