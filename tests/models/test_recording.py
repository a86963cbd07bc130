"""Recordings: what is written is what is read, and anything else is refused by name."""

import pytest
import torch
from safetensors.torch import save

from scoutattention.errors import ModelFileError
from scoutattention.models.recording import About, Choices, Recording, Run, load_recording

ABOUT = About("smollm2", "a text", 64, 32, 8, 1, 1, "keys2")


def make_run(steps=5, layers=3, heads=2, count=3, blocks=8, seed=0):
    """Different blocks in every list, the first and the last always among them; scouts chose in all layers but one."""
    torch.manual_seed(seed)

    def choices():
        middle = torch.rand(steps, layers, heads, blocks - 2).argsort(-1)[..., : count - 2] + 1
        ends = torch.zeros(steps, layers, heads, 1), torch.full((steps, layers, heads, 1), blocks - 1)
        chosen = torch.cat([ends[0], ends[1], middle], -1)
        return Choices(chosen.short(), torch.rand(chosen.shape).half())

    resident = torch.rand(layers, heads, blocks) < 0.5
    return Run(choices(), choices(), torch.tensor([False] + [True] * (layers - 1)), resident)


def test_what_is_written_is_read(tmp_path):
    recording = Recording(ABOUT, {"plain": make_run(seed=1), "calibrated": make_run(seed=2)})
    (tmp_path / "a").write_bytes(recording.to_bytes())
    read = load_recording(tmp_path / "a")
    assert read.about == ABOUT
    assert list(read.runs) == ["plain", "calibrated"]
    for name, run in recording.runs.items():
        assert all(torch.equal(*pair) for pair in zip(tensors(run), tensors(read.runs[name]), strict=True))


def tensors(run):
    return (*run.true, *run.scouts, run.scouted, run.resident)


def wrong_files():
    run = make_run()
    yield "cannot be opened", None
    yield "garbage", b"not a file of tensors"
    yield "another's", save({"weight": torch.zeros(2)})
    yield "of lists that differ", Recording(ABOUT, {"plain": run._replace(scouts=make_run(steps=4).scouts)}).to_bytes()
    wide = run.true._replace(blocks=run.true.blocks.int())
    yield "of wide numbers", Recording(ABOUT, {"plain": run._replace(true=wide)}).to_bytes()


@pytest.mark.parametrize(("name", "data"), list(wrong_files()))
def test_what_is_no_recording_is_refused(name, data, tmp_path):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ModelFileError, match=f"{name} is not a recording: "):
        load_recording(path)
