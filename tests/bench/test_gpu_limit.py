"""`scout bench gpu --device-limit`, on a GPU that is made up."""

from types import SimpleNamespace

import pytest
import torch

from scoutattention.bench.gpu import setup as gpu_setup
from scoutattention.bench.gpu.limit import limit_device, weight_bytes
from scoutattention.engine.device import free_memory
from scoutattention.errors import CapacityError, ConfigError
from scoutattention.models.formats.dummy import dummy_config, dummy_decoder
from scoutattention.models.shapes.known import shape_config

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
TINY = dummy_config(shape_config("tiny"), 256)
TOTAL, DRIVER = 80_000_000, 500_000


@pytest.fixture
def gpu(monkeypatch):
    """Has 80 MB, of which the driver holds half a megabyte, and PyTorch `reserved` bytes."""
    made = SimpleNamespace(reserved=0, others=0, fraction=1.0)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (TOTAL - DRIVER - made.others - made.reserved, TOTAL)
    )
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: made.reserved)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: made.fraction)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, device: setattr(made, "fraction", fraction)
    )
    return made


def test_without_a_limit_what_is_free_is_free(gpu):
    assert free_memory(CPU) is None
    assert free_memory(CUDA) == TOTAL - DRIVER
    gpu.reserved = 1_000_000
    assert free_memory(CUDA) == TOTAL - DRIVER - 1_000_000


def test_plans_and_pytorch_keep_to_the_limit(gpu):
    gpu.reserved = 2_000_000
    limit_device(CUDA, 24_000_000, TINY)
    assert free_memory(CUDA) == pytest.approx(24_000_000 - DRIVER - 2_000_000, abs=1)
    assert gpu.fraction * TOTAL == pytest.approx(24_000_000 - DRIVER)
    gpu.reserved = 30_000_000
    assert free_memory(CUDA) == 0


def test_what_others_take_later_is_not_free_either(gpu):
    limit_device(CUDA, 60_000_000, TINY)
    gpu.others = 50_000_000
    assert free_memory(CUDA) == TOTAL - DRIVER - 50_000_000


@pytest.mark.parametrize("shape", ["tiny", "qwen3-8b"])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_counted(shape, tied):
    """Those of a few layers: as many bytes as the decoder's matrices have."""
    raw = {**shape_config(shape), "num_hidden_layers": 2, "vocab_size": 64, "tie_word_embeddings": tied}
    raw |= {"hidden_size": 128, "intermediate_size": 64}
    weights = dummy_decoder(raw, 64, CPU).weights
    tables = weights.embedding.nbytes + (0 if tied else weights.head.nbytes)
    layers = sum(t.nbytes for one in weights.layers for t in (one.qkv, one.output, one.gate_up, one.down))
    assert weight_bytes(dummy_config(raw, 64)) == tables + layers


def test_a_limit_that_weights_or_the_device_refuse_is_one_sentence(gpu):
    weights = weight_bytes(TINY)
    with pytest.raises(
        CapacityError, match=rf"need {weights} bytes, and of --device-limit=600000 bytes .* leaves 100000"
    ):
        limit_device(CUDA, 600_000, TINY)
    with pytest.raises(CapacityError, match="leaves 0: raise --device-limit"):
        limit_device(CUDA, 1000, TINY)
    with pytest.raises(ConfigError, match=f"--device-limit=90000000 bytes is above the {TOTAL}"):
        limit_device(CUDA, 90_000_000, TINY)
    with pytest.raises(ConfigError, match="the device is a CPU"):
        limit_device(CPU, 90_000_000, TINY)
    assert gpu.fraction == 1.0


def test_the_limit_holds_before_weights_are_made(monkeypatch, tiny_models):
    told = []

    def limited(device, limit, config):
        told.append((limit, config.shape.num_layers))
        raise CapacityError("too small")

    monkeypatch.setattr(gpu_setup, "limit_device", limited)
    for make in (
        lambda: gpu_setup.dummy_setup("tiny", None, 256, CPU, 5),
        lambda: gpu_setup.real_setup(str(tiny_models["llama"]), "text", 256, CPU, 6),
    ):
        with pytest.raises(CapacityError):
            make()
    assert [limit for limit, _ in told] == [5, 6]
    assert told[0][1] == TINY.shape.num_layers
