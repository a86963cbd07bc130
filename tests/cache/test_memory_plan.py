"""Sizes of the pools."""

from dataclasses import replace

import pytest

from scoutattention.cache.memory_plan import digest_bytes, plan_memory, state_bytes, work_bytes
from scoutattention.config import EngineConfig, ScoutConfig
from scoutattention.errors import CapacityError, ConfigError
from scoutattention.shape import ModelShape

SHAPE = ModelShape(2, 4, 2, 16, 64, 64, 100, max_positions=1024)
BLOCK = 2 * 2 * 2 * 16 * 4 * 32  # layers, heads, keys and values, dim, bytes, tokens
ROOM = 10**9


def plan(scout=None, free=ROOM, **machine):
    return plan_memory(SHAPE, scout or ScoutConfig(budget=256), EngineConfig(**machine), free)


def test_where_the_cpu_is_the_device_there_is_one_pool_by_default():
    made = plan(max_num_seqs=3)
    assert (made.pages, made.slots) == (3 * 32, None)


def test_a_sequence_has_twice_its_budget_in_slots_where_they_are_asked_for():
    made = plan(max_num_seqs=3, device_memory="slots")
    assert (made.pages, made.slots) == (3 * 32, 3 * (1 + 14))
    assert made.max_running(5) == 5
    assert made.quota(3, 1024) == made.quota(1, 1024) == 14
    assert made.quota(1, 100) == 4


def test_device_memory_is_shared_by_the_sequences_that_run():
    made = plan(max_num_seqs=4, device_memory=20 * BLOCK + 5)
    assert made.slots == 20
    assert [made.quota(lanes, 1024) for lanes in (1, 2, 4)] == [19, 9, 4]


@pytest.mark.parametrize("memory", ["all", 4 * 32 * BLOCK])
def test_where_everything_fits_there_is_one_pool(memory):
    made = plan(max_num_seqs=4, device_memory=memory)
    assert made.slots is None
    assert made.max_running(4) == 4


def test_no_budget_means_everything_is_on_the_device_unless_told_otherwise():
    assert plan(ScoutConfig(budget=None), device_memory="slots").slots is None
    assert plan(ScoutConfig(budget=None), device_memory=9 * BLOCK).slots == 9


def test_the_host_pool_is_bounded_by_what_is_free_or_asked_for():
    assert plan(free=20 * BLOCK).pages == 10
    assert plan(free=20 * BLOCK, host_memory=15 * BLOCK).pages == 15


def test_fetching_needs_a_slot_for_every_chosen_block():
    config = ScoutConfig().changed(budget=256, on_miss="fetch")
    assert plan(config, device_memory=16 * BLOCK).max_running(9) == 2
    with pytest.raises(CapacityError, match=r"holds 7 blocks .* one sequence needs 8: raise device_memory"):
        plan(config, device_memory=7 * BLOCK).max_running(1)


def test_dropping_needs_slots_for_sink_and_recent_blocks():
    config = ScoutConfig().changed(budget=256, on_miss="drop")
    assert plan(config, device_memory=3 * BLOCK).max_running(1) == 1
    with pytest.raises(CapacityError, match="needs 3"):
        plan(config, device_memory=2 * BLOCK).max_running(1)


def test_errors_name_number_limit_and_knob():
    with pytest.raises(ConfigError, match=r"max_model_len=2048 is above the model's own limit of 1024"):
        plan(max_model_len=2048)
    with pytest.raises(CapacityError, match=rf"host_memory=100 bytes is below one block of {BLOCK} bytes"):
        plan(host_memory=100)
    with pytest.raises(CapacityError, match=rf"device_memory=100 bytes is below one block of {BLOCK} bytes"):
        plan(device_memory=100)


@pytest.mark.parametrize(("kv_dtype", "bits"), [("int8", 8), ("int4", 4)])
def test_packed_pages_are_counted_in_their_own_bytes(kv_dtype, bits):
    """A channel of a token in so many bits, and two bfloat16 bounds of each channel for keys and for values."""
    packed = BLOCK * bits // 32 + 2 * 2 * 2 * 16 * 4
    made = plan(free=20 * packed, kv_dtype=kv_dtype, device_memory="slots")
    assert (made.pages, made.slots) == (10, 8 * (1 + 10))
    with pytest.raises(CapacityError, match=rf"host_memory=100 bytes is below one block of {packed} bytes"):
        plan(host_memory=100, kv_dtype=kv_dtype, device_memory="slots")


def test_packed_pages_keep_slots_beside_them_where_everything_would_fit():
    assert plan(max_num_seqs=2, device_memory=500 * BLOCK, kv_dtype="int8").slots == 2 * 33


@pytest.mark.parametrize("options", [{}, {"device_memory": "all"}, {"scout": ScoutConfig(budget=None)}])
def test_packed_pages_on_the_device_have_slots_beside_them_for_open_blocks_alone(options):
    made = plan(**options, kv_dtype="int8", max_num_seqs=3)
    assert (made.resident, made.slots, made.max_running(3)) == (True, 3, 3)
    assert made.quota(2, 1024) == 0
    assert plan(kv_dtype="int8", device_memory="slots").resident is False


def test_what_is_kept_of_prompts_beside_their_pages_is_bounded():
    """A state is the bases of two layers and heads, and where scouts are made their corrections, of 64 inputs each."""
    bases, corrections = 2 * 2 * 2 * 4 * 16**2, 2 * 2 * 64 * min(64, ScoutConfig().ablation.correction_dims) * 4
    for memory, state in (("all", bases), ("slots", bases + corrections)):
        made = plan(max_num_seqs=100, device_memory=memory)
        assert made.lineages == max(100, 3200 * BLOCK // 8 // state)
        assert made.least_kept == -(-state // BLOCK)
        assert plan(max_num_seqs=1, device_memory=memory).lineages == max(1, 32 * BLOCK // 8 // state)
    assert plan(prefix_cache=False).lineages == 0
    assert plan(ScoutConfig(budget=None)).least_kept == 1


def test_an_unknown_page_dtype_is_named():
    with pytest.raises(ConfigError, match="kv_dtype='int2' is not one of auto, int8, int4"):
        plan(kv_dtype="int2")


GPU = EngineConfig(device="cuda", device_memory="all", max_num_seqs=4)


@pytest.mark.parametrize("digest", ["minmax", "keys2", "two-stage"])
def test_pages_on_a_device_leave_room_for_their_digests_and_for_prompts_and_steps(digest):
    """The longest prompt is the model's, or what the pages hold."""
    scout = ScoutConfig().changed(budget=256, digest=digest)
    of_page = {"minmax": 8 * 16, "keys2": 4 * 32 + 4 * 16, "two-stage": 4 * 32 + 4 * 16}[digest] * 2 * 2
    of_page += BLOCK + 16 * 2 * 2  # and tables
    bases = GPU.max_num_seqs * 2 * 2 * 2 * 4 * 16**2 if digest == "two-stage" else 0  # layers, heads, keys and queries
    for count in (1, 20, 50, 128):
        needed = bases + count * of_page + work_bytes(SHAPE, scout, GPU, min(1024, count * 32))
        assert plan_memory(SHAPE, scout, GPU, ROOM, needed).pages == count
        if count > 1:
            assert plan_memory(SHAPE, scout, GPU, ROOM, needed - 1).pages == count - 1
    message = rf"{work_bytes(SHAPE, scout, GPU, 32)} for prompts and steps, .* lower max_num_seqs"
    with pytest.raises(CapacityError, match=message):
        plan_memory(SHAPE, scout, GPU, ROOM, bases + work_bytes(SHAPE, scout, GPU, 32))


@pytest.mark.parametrize("memory", [None, 40 * BLOCK])
def test_slots_leave_room_for_prompts_and_steps(memory):
    scout, config = ScoutConfig().changed(budget=256), replace(GPU, device_memory=memory)
    needed = plan_memory(SHAPE, scout, config, ROOM, ROOM).slots * BLOCK
    needed += 4 * (32 * digest_bytes(SHAPE, scout) + state_bytes(SHAPE, scout, config))
    room = work_bytes(SHAPE, scout, config, 1024)
    assert plan_memory(SHAPE, scout, config, ROOM, needed + room).slots
    message = rf"slots of {BLOCK} bytes, .* and {room} for prompts .* the {needed + room - 1} bytes .* max_model_len"
    with pytest.raises(CapacityError, match=message):
        plan_memory(SHAPE, scout, config, ROOM, needed + room - 1)


def test_a_gpu_does_not_read_all_keys_of_host_pages():
    exact = ScoutConfig().changed(budget=256, digest="exact")
    assert plan_memory(SHAPE, exact, GPU, ROOM, ROOM).slots is None
    with pytest.raises(ConfigError, match="digest='exact' is made of all keys"):
        plan_memory(SHAPE, exact, replace(GPU, device_memory="slots"), ROOM, ROOM)


@pytest.mark.parametrize("limit", [10**12, 10**30])
def test_a_limit_that_no_memory_holds_makes_no_tables(limit):
    made = plan_memory(replace(SHAPE, max_positions=limit), ScoutConfig(), EngineConfig(), ROOM)
    assert made.max_len == limit
    assert made.pages == made.widest == made.most_slots == ROOM // 2 // BLOCK
