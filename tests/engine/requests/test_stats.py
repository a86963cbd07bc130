"""What statistics say as text."""

from dataclasses import replace

from scoutattention import Stats
from scoutattention.attention.step import StepStats

ONE_MEMORY = Stats(
    prompt_tokens=5400,
    new_tokens=64,
    decode_s=2.0,
    decode_tokens=63,
    first_token_s=1.5,
    requests=1,
    kv_bytes_total=2**30,
)
TWO_MEMORIES = replace(
    ONE_MEMORY,
    kv_bytes_device=2**28,
    device="cuda",
    steps=StepStats(chosen_blocks=1000, far_blocks=82, hidden_s=0.4, unhidden_s=0.1, recalled_bytes=3 * 2**20),
)


def test_statistics_say_what_counts():
    lines = str(TWO_MEMORIES).splitlines()
    assert lines == [
        "Prompt    5,400 tokens, first new token after 1.50 s",
        "Answer    64 tokens, 31.5 tokens/s",
        "KV cache  1.0 GiB in full, 256.0 MiB on the device",
        "CPU share 8.2% of the chosen blocks",
        "CPU time  0.40 s hidden behind the device, 0.10 s waited for",
        "Recalled  3.0 MiB to the device",
    ]
    lines += str(replace(TWO_MEMORIES, device="cpu")).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[8] == "KV cache  1.0 GiB, and 256.0 MiB of copies in slots: a CPU has one memory"


def test_where_the_device_held_everything_there_is_less_to_say():
    lines = str(replace(ONE_MEMORY, kv_bytes_device=2**30)).splitlines()
    assert [line.split()[0] for line in lines] == ["Prompt", "Answer", "KV"]
    assert str(Stats())
