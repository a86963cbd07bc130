"""Prompts in a directory: a restart answers without reading them, and nothing that was written in part is ever read."""

import os
import random
import signal
import time

import pytest
import torch

from scoutattention import LLM, CacheFolderError, ConfigError, SamplingParams, ScoutConfig
from scoutattention.cache.memory_plan import kept_dims
from scoutattention.cache.prefix import chain_names
from scoutattention.engine.prefix import files as prefix_files
from scoutattention.engine.prefix.files import PrefixFiles

from ...models import families
from ...tiny import save
from .test_prefixes import BEYOND, DOCUMENT, MEMORIES, PARAMS, PROMPTS, WITHIN, assert_free

PAGES, LAYERS = 40, 3
FIRST_MIB = 1 << 20


@pytest.fixture
def content():
    return [torch.zeros(LAYERS, PAGES, 2, 8), torch.zeros(LAYERS, PAGES, 5, dtype=torch.uint8)]


def names_of(number: int, count: int = 6) -> list[bytes]:
    return chain_names([number] * 2 * count, 2, b"")


def fill(content, number: int) -> None:
    """What pages hold of a prompt: numbers that its own number makes."""
    for place, part in enumerate(content):
        generator = torch.Generator().manual_seed(1000 * number + place)
        part[:] = torch.randint(0, 200, part.shape, generator=generator)


def whole(files: PrefixFiles, content, number: int) -> bool:
    """Whether a prompt is there; what is there must be right."""
    stored, count = files.find(names_of(number), 0, 0)
    if stored is None:
        return False
    for part in content:
        part.zero_()
    state = files.read(stored, count, list(range(10, 10 + count)))
    found = [part.clone() for part in content]
    fill(content, number)
    assert count == 6
    assert [one.tolist() for one in state] == [[number]]
    for part, expected in zip(found, content, strict=True):
        assert torch.equal(part[:, 10:16], expected[:, :6])
    return True


def store(files: PrefixFiles, content, number: int) -> None:
    fill(content, number)
    files.keep(names_of(number), list(range(6)), [torch.tensor([number])])


def opened(tmp_path, content, limit: int = FIRST_MIB, key: str = "model") -> PrefixFiles:
    return PrefixFiles(tmp_path / "kept", limit, key, content)


def test_what_was_stored_is_found_by_the_next_process(tmp_path, content):
    files = opened(tmp_path, content)
    for number in (1, 2):
        store(files, content, number)
        assert whole(files, content, number)
    with pytest.raises(CacheFolderError, match="another process has prefix_cache_dir="):
        opened(tmp_path, content)
    files.close()
    files = opened(tmp_path, content)
    assert [whole(files, content, number) for number in (1, 2, 3)] == [True, True, False]
    assert files.find(names_of(1)[:4] + names_of(2)[:1], 0, 0)[1] == 4
    assert files.find(names_of(1)[:4], 5, 0) == files.find(names_of(1), 0, 7) == (None, 0)
    files.close()
    other = opened(tmp_path, content, key="another model")
    assert not whole(other, content, 1)
    other.close()


def test_the_least_recently_used_go_where_the_directory_is_full(tmp_path, content):
    files = opened(tmp_path, content)
    store(files, content, 1)
    size = sum(file.stat().st_size for file in (tmp_path / "kept").rglob("*") if file.is_file())
    files.close()
    files = opened(tmp_path, content, limit=2 * size + size // 2)
    store(files, content, 2)
    os.utime(files.find(names_of(2), 0, 0)[0].folder, (1, 1))
    assert whole(files, content, 1)
    store(files, content, 3)
    assert [whole(files, content, number) for number in (1, 2, 3)] == [True, False, True]
    files.close()
    files = opened(tmp_path, content, limit=size // 2, key="another model")
    store(files, content, 4)
    assert not whole(files, content, 4), "it is too large"
    files.close()


@pytest.mark.parametrize("name", ["index.safetensors", "state.safetensors", "layer-0001.safetensors"])
@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_a_damaged_prompt_is_told_of_and_deleted(tmp_path, content, caplog, name, harm):
    files = opened(tmp_path, content)
    store(files, content, 1)
    files.close()
    (path,) = (tmp_path / "kept").rglob(name)
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if harm == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    files = opened(tmp_path, content)
    stored, count = files.find(names_of(1), 0, 0)
    if name.startswith("index"):
        assert stored is None
    else:
        assert files.read(stored, count, list(range(6))) is None
    assert "cannot be used, and is deleted" in caplog.text
    assert files.find(names_of(1), 0, 0) == (None, 0)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["lock"]
    files.close()


def test_a_full_disk_stores_nothing_and_says_so(tmp_path, content, caplog, monkeypatch):
    files = opened(tmp_path, content)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prefix_files.os, "fsync", full)
        store(files, content, 1)
    assert "No space left" in caplog.text
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["lock"]
    store(files, content, 1)
    assert whole(files, content, 1)
    files.close()


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_leaves_nothing_that_is_misread(tmp_path, content):
    """It stores prompts one after the other, and removes the oldest; each run is killed at random."""
    dice, found = random.Random(0), 0
    for run in range(200):
        child = os.fork()
        if child == 0:
            files = opened(tmp_path, content, limit=60_000)
            for number in range(1000):
                store(files, content, 5 * run + number)
        time.sleep(dice.random() * 0.15)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        files = opened(tmp_path, content, limit=60_000)
        folders = [path for path in (tmp_path / "kept").iterdir() if path.is_dir()]
        assert len(files._stored) == len(folders), "nothing is left half done"
        there = [number for number in range(5 * run - 50, 5 * run + 300) if whole(files, content, max(0, number))]
        found += bool(there)
        files.close()
    assert found > 20


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("scout", [WITHIN, BEYOND], ids=["within budget", "beyond"])
def test_a_restart_answers_as_if_it_had_not_ended(tiny_models, tmp_path, memory, scout):
    assert_restarts(str(tiny_models["llama"]), scout, {"prefix_cache_dir": str(tmp_path / "kept")} | MEMORIES[memory])


@pytest.mark.parametrize("memory", ["one", "slots", "packed"])
def test_a_restart_finds_digests_of_some_main_dimensions(tmp_path, memory):
    """Heads of 48 channels, of which 32 main dimensions are kept."""
    path = str(save(families.make("llama", head_dim=48), tmp_path / "model"))
    with LLM(path, scout=BEYOND, **MEMORIES[memory]) as llm:
        assert kept_dims(llm.engine.runner.decoder.shape) == 32
    assert_restarts(path, BEYOND, {"prefix_cache_dir": str(tmp_path / "kept")} | MEMORIES[memory])


def assert_restarts(path: str, scout: ScoutConfig, options: dict) -> None:
    """An engine answers like one before it, whose prompts it finds."""
    with LLM(path, scout=scout, **options) as llm:
        llm.generate(PROMPTS[0], PARAMS)
        expected = llm.generate(PROMPTS[1], PARAMS)[0]
        assert expected.cached_tokens == 272
    with LLM(path, scout=scout, **options) as llm:
        out = llm.generate(PROMPTS[1], PARAMS)[0]
        assert (out.cached_tokens, out.token_ids) == (272, expected.token_ids)
        assert llm.generate(PROMPTS[0], PARAMS)[0].cached_tokens == 264
        assert_free(llm)
    with LLM(path, scout=scout.changed(lookahead=2), **options) as llm:
        assert llm.generate(PROMPTS[1], PARAMS)[0].cached_tokens == 0


def test_settings_that_rule_out_a_directory_are_named(tiny_models, tmp_path):
    path, folder = str(tiny_models["llama"]), str(tmp_path / "kept")
    with pytest.raises(ConfigError, match="prefix_cache=False stores no prompts, and prefix_cache_dir="):
        LLM(path, prefix_cache=False, prefix_cache_dir=folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheFolderError, match=r"cannot use prefix_cache_dir=.*: it is not a directory"):
        LLM(path, prefix_cache_dir=str(tmp_path / "file"))
    with LLM(path, prefix_cache_dir=folder, prefix_cache_size="1MiB") as llm:
        assert llm.engine_config.prefix_cache_size == FIRST_MIB
        llm.generate(DOCUMENT, SamplingParams(max_tokens=1))
