"""CPU shares from recordings: what slots and recall are worth, without a model."""

import json
from statistics import fmean

import numpy as np
import pytest
from safetensors.numpy import save_file

from scoutattention import ModelFileError, ScoutConfig
from scoutattention.cli import main
from scoutattention.planner.residency import Recorded, mean_share, read_recording, recorded_shares

STEPS, LAYERS, HEADS, CHOSEN, BLOCKS = 48, 4, 2, 15, 64
CONTEXT = 2048
SCOUT = ScoutConfig(budget=512)


@pytest.fixture(scope="module")
def recorded():
    """Each head chooses blocks from a window that slides over the sequence; twice as many are resident at first."""
    draw = np.random.default_rng(0)
    blocks = np.empty((STEPS, LAYERS, HEADS, CHOSEN), np.int64)
    for step in range(STEPS):
        window = np.arange(step // 3, step // 3 + 2 * CHOSEN)
        for layer in range(LAYERS):
            for head in range(HEADS):
                blocks[step, layer, head] = draw.permutation(window)[:CHOSEN]
    resident = np.zeros((LAYERS, HEADS, BLOCKS), bool)
    resident[..., : 2 * CHOSEN] = True
    wishes = np.full(blocks.shape, 1 / CHOSEN, np.float32)
    return Recorded(blocks, wishes, resident, CONTEXT, 512)


def mean(recorded, scout=SCOUT, slots=1.0):
    return fmean(fmean(step) for step in recorded_shares(recorded, scout, LAYERS, slots))


def test_nothing_is_far_at_first(recorded):
    assert next(recorded_shares(recorded, SCOUT, LAYERS)) == [0.0] * LAYERS


def test_recall_holds_the_share_down(recorded):
    never, often = (mean(recorded, SCOUT.changed(recall_interval=interval)) for interval in (0, 2))
    assert never > 2 * often > 0


def test_more_slots_leave_less_to_the_cpu(recorded):
    shares = [mean(recorded, slots=slots) for slots in (0.5, 1.0, 2.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 3 * shares[1]
    assert mean(recorded, slots=4.0) == 0.0


def test_layers_are_stretched_over_a_deeper_model(recorded):
    (step, *_), (deep, *_) = (list(recorded_shares(recorded, SCOUT, layers))[-1:] for layers in (LAYERS, 8))
    assert deep == [share for share in step for _ in range(2)]


def test_a_block_that_closes_gets_a_slot(recorded):
    blocks = np.broadcast_to(np.arange(CHOSEN), recorded.blocks.shape).copy()
    blocks[5:, :, :, 0] = BLOCKS
    shares = recorded_shares(recorded._replace(blocks=blocks), SCOUT.changed(recall_interval=0), LAYERS)
    assert {share for step in shares for share in step} == {0.0}


def write(recorded, file, context):
    tensors = {"blocks": recorded.blocks.astype(np.int16), "wishes": recorded.wishes.astype(np.float16)}
    named = {f"calibrated.scouts.{name}": tensor for name, tensor in tensors.items()}
    about = {"about": json.dumps({"context": context, "budget": 512}), "runs": json.dumps(["calibrated"])}
    save_file(named | {"calibrated.resident": recorded.resident}, file, {"format": "2"} | about)
    return file


@pytest.fixture
def file(recorded, tmp_path):
    return write(recorded, tmp_path / "choices.safetensors", CONTEXT)


def test_a_plan_goes_by_a_recording(file, recorded, capsys):
    args = ["plan", "qwen3-8b", "--hardware", "rtx-4090", "--context", "8192", "--budget", "512", "--json"]
    drift = ["--drift", str(file), "--ablation", "recall_interval=2"]
    for more, share in (([], 0.085), (drift, mean_share(recorded, SCOUT.changed(recall_interval=2)))):
        assert main([*args, *more]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert [row["cpu_share"] for row in rows if row["design"] == "scout"] == pytest.approx([share] * 3, rel=0.01)


def test_each_case_is_compared_by_its_own_recording(file, recorded, tmp_path, capsys):
    """Its steps are those that count, and of several recordings it takes that of its context and budget."""
    longer = write(recorded._replace(blocks=recorded.blocks[::-1].copy()), tmp_path / "longer.safetensors", 4096)
    case = {"engine": "scout-slots", "context": CONTEXT, "batch": 1, "ms_per_step": 9.0, "share": 0.1}
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"cases": [case], "method": {"budget": 512, "max_cpu_share": None}, "steps": [4, 12]}))
    args = ["plan", "smollm2-135m", "--hardware", "desktop", "--check", str(bench), "--json"]
    shares = []
    for drift in ([file], [longer, file], [longer]):
        assert main([*args, *(word for one in drift for word in ("--drift", str(one)))]) == 0
        shares.append(json.loads(capsys.readouterr().out)["cases"][0]["pairs"]["share"]["predicted"])
    expected = fmean(fmean(step) for step in list(recorded_shares(recorded, SCOUT, LAYERS))[4:12])
    assert expected < shares[0] == shares[1] < 2 * expected, "the guard's blocks count again"
    assert shares[2] > 2 * shares[0], "a single recording is for every case"
    bench.write_text(bench.read_text().replace("2048", "8192"))
    assert main([*args, "--drift", str(file), "--drift", str(longer)]) == 2
    assert "no --drift is a recording of 8192 tokens with a budget of 512" in capsys.readouterr().err
    assert main([*args[:4], "--drift", str(file), "--drift", str(longer)]) == 2
    assert "a plan takes one recording: give --drift once" in capsys.readouterr().err


def test_what_is_no_recording_is_refused(file, tmp_path):
    (tmp_path / "other").write_bytes(b"{}")
    for path, message in (
        (tmp_path / "none", "make one with `scout eval fidelity MODEL --record FILE`"),
        (tmp_path / "other", "is not a recording"),
    ):
        with pytest.raises(ModelFileError, match=message):
            read_recording(path)
    with pytest.raises(ModelFileError, match="no run of the predictor plain"):
        read_recording(file, "plain")
