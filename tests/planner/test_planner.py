"""Plans: what fits, what is faster, and what they say where nothing is."""

import subprocess
import sys
from dataclasses import replace

import pytest

from scoutattention import ScoutConfig
from scoutattention.cache.memory_plan import plan_memory
from scoutattention.errors import CapacityError, ConfigError
from scoutattention.hardware.gpu import Driver, Gpu
from scoutattention.hardware.host import Host
from scoutattention.hardware.measure import Measured
from scoutattention.models.shapes.known import KNOWN_SHAPES, read_model
from scoutattention.planner.computers import CARDS, CLOUDS, GIB, HOSTS, card_named, find_computer, this_computer
from scoutattention.planner.cpu_costs import PACE
from scoutattention.planner.memory import largest_batch, missing, needs_of, room_of, settings_of
from scoutattention.planner.planner import make_plan, recommend, work_of
from scoutattention.planner.work import DESIGNS, weight_bytes

SCOUT = ScoutConfig()
QWEN = read_model("qwen3-8b")


@pytest.mark.parametrize("name", [*CARDS, *HOSTS, *CLOUDS])
def test_every_computer_is_sound(name):
    computer = find_computer(name)
    assert 1 < computer.host.cores <= 96
    assert computer.host.memory >= 8 * GIB
    assert 20e9 < computer.host.bandwidth < 600e9
    assert computer.host.source
    if computer.card is not None:
        assert 8 * GIB <= computer.card.memory <= 192 * GIB
        assert 200e9 < computer.card.bandwidth <= 8000e9
        assert computer.card.link < computer.card.bandwidth
        assert computer.card.source


def test_a_card_takes_any_host():
    assert find_computer("RTX-4090+epyc-7763").host is HOSTS["epyc-7763"]


@pytest.mark.parametrize(
    ("name", "near"), [("rtx-4091", "rtx-4090"), ("rtx-4090+epyc-776", "epyc-7763"), ("h100-sxm5", "h100")]
)
def test_an_unknown_name_gets_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"'{near}.*is the nearest; give one of"):
        find_computer(name)


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "rtx-4060-laptop"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA RTX 9090", None),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb-sxm"),
        ("NVIDIA L4", "l4"),
    ],
)
def test_drivers_names_of_cards(device, card):
    assert card_named(device) is (None if card is None else CARDS[card])


def test_this_computer_has_what_was_measured():
    measured = Measured("a CPU", 2, 50e9, replace(PACE, flops=1e11), "2026-11-26")
    computer = this_computer(Host(), None, measured)
    assert (computer.card, computer.host.bandwidth, computer.host.measured) == (None, 50e9, True)
    assert computer.host.pace == measured.pace
    assert this_computer(Host(), None, None).host.pace is None
    driver = Driver((13, 0), 0, (Gpu("NVIDIA GeForce RTX 4090", (8, 9), 24 * GIB),))
    assert this_computer(Host(), driver, None).card == CARDS["rtx-4090"]
    unknown = replace(driver, gpus=(Gpu("NVIDIA GeForce RTX 9090", (12, 0), GIB),))
    with pytest.raises(ConfigError, match="no data of the GPU NVIDIA GeForce RTX 9090: plan with --hardware"):
        this_computer(Host(), unknown, measured)


@pytest.mark.parametrize("hardware", ["rtx-4090", "h100-16-cores", "desktop"])
@pytest.mark.parametrize("design", ["full", "scout"])
@pytest.mark.parametrize("context", [8192, 32768])
def test_the_memory_plan_agrees(hardware, design, context):
    """The largest batch is what `plan_memory` gives room to, and one more is not."""
    computer = find_computer(hardware)
    most = largest_batch(design, work_of(QWEN, SCOUT, context), computer)
    scout = SCOUT.changed(budget=None) if design == "full" else SCOUT
    assert most > 0
    for batch in (most, most + 1):
        work = work_of(QWEN, SCOUT, context)._replace(batch=batch)
        config, needs, room = settings_of(design, work, computer), needs_of(design, work, computer), room_of(computer)
        weights = weight_bytes(work, computer)
        device = None if computer.card is None else room.device - weights
        host = needs.cache if batch == most else room.host - (0 if computer.card else weights)
        config = replace(config, host_memory=host or None)
        try:
            pages = plan_memory(work.shape, scout, config, room.host, device).pages
        except CapacityError:
            pages = 0
        enough = pages >= batch * -(-context // scout.block_size)
        short = any(missing(design, work, computer))
        assert enough or short
        assert short == (batch > most)


def test_weights_that_do_not_fit_say_by_how_much():
    model = read_model("llama-3.1-70b")
    with pytest.raises(CapacityError, match=r"take 131\.4 GiB in bfloat16.* has 23\.4 GiB.*108\.0 GiB are missing"):
        make_plan(model, find_computer("rtx-4090"), SCOUT, [8192])


def test_a_small_card_is_where_scout_pays():
    made = make_plan(QWEN, find_computer("rtx-4090"), SCOUT, [8192, 65536])
    full, scout = ({row.context: row for row in made.rows if row.engine == name} for name in ("full", "scout"))
    assert full[65536].batch == 0
    assert full[65536].missing_device == pytest.approx(2.65 * GIB, rel=0.05)
    assert scout[65536].batch >= 3
    even = {one.context: one for one in made.break_even}
    assert even[65536].batch == 1, "full attention cannot run at all"
    assert even[8192].batch == full[8192].batch + 1
    assert even[65536].scout_needs < 24 * GIB < even[65536].full_needs
    assert {one.design for one in made.recommended} == {"scout"}
    assert [one.design for one in made.alone] == ["full", "scout"]


@pytest.mark.parametrize(("context", "budget"), [(64, 2048), (4000, 2048), (8192, 100_000)])
def test_nothing_is_far_where_all_blocks_have_slots(context, budget):
    scout, card = ScoutConfig(budget=budget), find_computer("rtx-4090")
    rows = {row.design: row for row in make_plan(QWEN, card, scout, [context], [4]).rows if row.kv_dtype == "auto"}
    assert rows["scout"].cpu_share == 0
    longer = make_plan(QWEN, card, SCOUT, [8192], [4]).rows
    assert next(row for row in longer if row.design == "scout").cpu_share == 0.085
    assert rows["scout"].step_s < 2 * rows["full"].step_s


def test_a_large_card_and_a_short_context_are_for_full_attention():
    computer = find_computer("h200").with_host_memory(64 * GIB)
    assert recommend(work_of(QWEN, SCOUT, 2048), computer, batch=1).design == "full"
    best = recommend(work_of(QWEN, SCOUT, 8192), computer, batch=4)
    assert (best.design, best.host_memory) == ("full", 0)


def test_packed_pages_must_earn_their_place():
    """Where host memory is short, 8-bit pages let more sequences run; where the card is, nothing is gained."""
    short, card = find_computer("h100-16-cores"), find_computer("rtx-4090")
    assert recommend(work_of(QWEN, SCOUT, 65536), short).kv_dtype == "int8"
    assert recommend(work_of(QWEN, SCOUT, 65536), card).kv_dtype == "auto"


def test_a_cpu_has_no_rivals_with_slots():
    made = make_plan(QWEN, find_computer("desktop"), SCOUT, [8192], [1, 4])
    assert {row.design for row in made.rows} == {"full", "scout"}
    assert {row.batch for row in made.rows} == {1, 4}
    assert all(row.device == 0 for row in made.rows)


@pytest.mark.parametrize("name", KNOWN_SHAPES)
def test_every_model_has_a_plan(name):
    known = read_model(name)
    computer = replace(find_computer("gh200"), card=replace(CARDS["gh200"], memory=192 * GIB))
    made = make_plan(known, computer, SCOUT, [4096])
    assert {row.design for row in made.rows} == set(DESIGNS)
    assert all(row.tokens_per_s > 0 and not row.missing_device for row in made.rows)


def test_no_pytorch_is_loaded():
    code = (
        "import sys; from scoutattention.cli import main\n"
        "assert main(['plan', 'qwen3-8b', '--hardware', 'rtx-4090', '--json']) == 0\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'safetensors'} & set(sys.modules), 'too much is loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
