"""A stored calibration is found by the model it was made of, and refused by every other."""

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scoutattention.attention.prompt.correction import Correction
from scoutattention.errors import CacheFolderError, CalibrationError
from scoutattention.models.calibration import default_cache_dir as CACHE_DIR
from scoutattention.models.calibration import default_path, find, store
from scoutattention.models.loader import load
from scoutattention.runtime.ranks import Alone

from ..tiny import save
from . import families


@pytest.fixture
def decoder(tiny_models):
    return load(str(tiny_models["qwen3"])).decoder


@pytest.fixture
def corrections(decoder):
    torch.manual_seed(0)
    return Correction(*torch.randn(2, decoder.shape.num_layers, decoder.shape.hidden_size, 5))


def test_what_is_stored_is_found(stored_here, decoder, corrections):
    assert find(decoder, 1, "auto") is None
    path = default_path(decoder, 1)
    store(path, decoder, 1, corrections)
    found = find(decoder, 1, "auto")
    assert [file.name for file in stored_here.iterdir()] == [path.name]
    assert found.name.startswith(f"{path.name} sha256:")
    for mine, kept in zip(found.corrections, corrections, strict=True):
        assert torch.equal(mine, kept.bfloat16())
    assert find(decoder, 4, "auto") is None
    assert find(decoder, 1, None) is None
    moved = path.rename(stored_here / "mine")
    assert find(decoder, 1, str(moved)).name != found.name


def test_a_fingerprint_is_of_the_weights_whatever_their_format(tiny_models, tmp_path, decoder):
    path = str(tiny_models["qwen3"])
    assert load(path, "bfloat16").decoder.fingerprint == decoder.fingerprint
    assert load(path, ranks=Alone(1, 2)).decoder.fingerprint == decoder.fingerprint
    model = families.make("qwen3")
    with torch.no_grad():
        model.model.layers[2].self_attn.v_proj.weight += 0.1
    assert load(str(save(model, tmp_path))).decoder.fingerprint != decoder.fingerprint
    prints = {load(str(path)).decoder.fingerprint for path in tiny_models.values()}
    assert len(prints) == len(tiny_models)


def test_another_models_or_lookaheads_is_refused(stored_here, tiny_models, decoder, corrections):
    path = default_path(decoder, 2)
    store(path, decoder, 2, corrections)
    other = load(str(tiny_models["mistral"])).decoder
    with pytest.raises(CalibrationError, match=f"for model {decoder.fingerprint}, and this is {other.fingerprint}"):
        find(other, 2, str(path))
    with pytest.raises(CalibrationError, match="for lookahead 2, and this is 1"):
        find(decoder, 1, str(path))


@pytest.mark.parametrize("harm", ["cut", "text", "gone", "narrow", "nan"])
def test_a_file_that_is_not_whole_is_refused(stored_here, decoder, corrections, harm):
    path = default_path(decoder, 1)
    if harm == "narrow":
        corrections = Correction(corrections.left[:, 1:], corrections.right[:, 1:])
    if harm == "nan":
        corrections.left[1, 2, 3] = torch.nan
    store(path, decoder, 1, corrections)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    if harm == "text":
        path.write_text("hello")
    if harm == "gone":
        tensors = load_file(path)
        save_file({"left": tensors["left"]}, path)
    with pytest.raises(CalibrationError, match=re.escape(str(path))) as caught:
        find(decoder, 1, "auto")
    assert "--calibration off" in str(caught.value)


def test_an_interruption_leaves_nothing_behind(stored_here, decoder, corrections, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store(default_path(decoder, 1), decoder, 1, corrections)
    assert not list(stored_here.iterdir())


def test_a_pipe_is_not_waited_for(tmp_path, decoder):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CalibrationError, match="pipe is not a file"):
        find(decoder, 1, str(tmp_path / "pipe"))


def test_a_path_must_exist_and_a_folder_be_writable(tmp_path, decoder, corrections):
    with pytest.raises(CalibrationError, match="absent"):
        find(decoder, 1, str(tmp_path / "absent"))
    (tmp_path / "file").touch()
    with pytest.raises(CacheFolderError, match="XDG_CACHE_HOME"):
        store(tmp_path / "file" / "calibration", decoder, 1, corrections)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CACHE_DIR() == tmp_path / "scoutattention"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CACHE_DIR() == tmp_path / ".cache" / "scoutattention"
