"""Layers as vLLM makes them: which are served, and what their queries are."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scoutattention import UnsupportedModelError
from scoutattention.integrations.vllm.model import find_layers
from scoutattention.integrations.vllm.queries import LayerQueries, ServedLayer, place
from scoutattention.kernels.reference_rows import RowCorrection
from scoutattention.models.loader import load
from scoutattention.runtime.ranks import ALONE
from scoutattention.runtime.workers import Workers


class Attend(nn.Module):
    """As vLLM's `Attention`; the plugin never has it attend while it takes a query."""

    def __init__(self, **changes):
        super().__init__()
        self.impl = SimpleNamespace(sliding_window=-1, logits_soft_cap=0, alibi_slopes=None, sinks=None)
        self.attn_type, self.kv_sharing_target_layer_name = "decoder", None
        for name, value in changes.items():
            setattr(self if name in vars(self) or name == "attn_type" else self.impl, name, value)

    def forward(self, q, k, v):
        raise AssertionError("attention ran")


class Project(nn.Linear):
    """As vLLM's linear layers: the result, and a bias that is not added yet."""

    def forward(self, x):
        return super().forward(x), None


class SelfAttention(nn.Module):
    """Of one layer of a decoder of ours, called as vLLM calls its own."""

    def __init__(self, decoder, layer):
        super().__init__()
        self.decoder, self.layer, self.attn = decoder, layer, Attend()
        weights = decoder.weights.layers[layer]
        self.qkv_proj = Project(*weights.qkv.shape[::-1])
        self.qkv_proj.weight.data = weights.qkv
        self.qkv_proj.bias.data = weights.qkv_bias

    def forward(self, positions, hidden_states):
        assert positions.is_contiguous()  # as vLLM's kernels need it
        assert hidden_states.is_contiguous()
        rope = self.decoder.rope(positions)
        return self.attn(*(part.flatten(1) for part in self.decoder.project(self.layer, hidden_states, rope)))


class Block(nn.Module):
    def __init__(self, decoder, layer):
        super().__init__()
        self.self_attn = SelfAttention(decoder, layer)
        self.input_layernorm = Norm(decoder, layer)


class Norm(nn.Module):
    def __init__(self, decoder, layer):
        super().__init__()
        self.decoder, self.layer = decoder, layer

    def forward(self, x):
        assert x.is_contiguous()
        return self.decoder.normed_input(self.layer, x)


@pytest.fixture(scope="module")
def decoder(tiny_models):
    return load(str(tiny_models["qwen2"])).decoder


@pytest.fixture(scope="module")
def workers():
    with Workers(1) as made:
        yield made


@pytest.fixture
def queries(decoder, workers):
    blocks = [Block(decoder, layer) for layer in range(3)]
    layers = [ServedLayer(one, one.self_attn.attn) for one in blocks]
    return LayerQueries("Some", layers, decoder.shape, 2.0, ALONE, workers)


def test_queries_are_those_of_the_layers(decoder, queries):
    x, positions = torch.randn(10, 64)[::2], torch.tensor([3, 1, 0, 1, 90, 1, 7, 1, 7, 1])[::2]
    rope = decoder.rope(positions)
    queries.check()
    torch.testing.assert_close(queries.normed_input(1, x), decoder.normed_input(1, x))
    torch.testing.assert_close(queries.query_weight(2), decoder.query_weight(2))
    mine = queries.project_query(1, x, place(positions), lambda z: 0.5 * z)
    torch.testing.assert_close(mine, 2.0 * decoder.project_query(1, x, rope, lambda z: 0.5 * z))
    for many in (1, 8):  # of few rows the products are native, and of many PyTorch's
        rows, places = x.repeat(many, 1), positions.repeat(many)
        by = [RowCorrection(torch.randn(5 * many, 4, 64), torch.randn(5 * many, 64, 4))]
        mine = queries.project_corrected(1, rows, place(places), by)
        theirs = 2.0 * decoder.project_corrected(1, rows, decoder.rope(places), by)
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    with pytest.raises(AssertionError, match="attention ran"):  # where no query is wanted
        queries._layers[0].block.self_attn(positions=positions.contiguous(), hidden_states=x.contiguous())


def test_layers_of_another_make_have_no_scouts(decoder, workers):
    block = Block(decoder, 0)
    del block.input_layernorm
    queries = LayerQueries("Some", [ServedLayer(block, block.self_attn.attn)], decoder.shape, 1.0, ALONE, workers)
    with pytest.raises(UnsupportedModelError, match="Block differs from Llama's in input_layernorm: set scout's"):
        queries.check()


class Model(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": Attend()}) for _ in range(count))


def test_layers_are_found_in_their_order():
    model = Model(12)
    named = {f"layers.{n}.attn": model.layers[n]["attn"] for n in reversed(range(12))}
    found = find_layers("Some", model, named)
    assert [layer.block for layer in found] == list(model.layers)


@pytest.mark.parametrize(
    ("path", "attend", "message"),
    [
        ("encoder.attn", Attend(), "has encoder.attn, which is no causal attention"),
        ("layers.1.attn", Attend(attn_type="encoder"), "has layers.1.attn, which is no causal attention"),
        ("layers.0.cross", Attend(), "layer 0 of Some attends twice"),
        ("layers.1.attn", Attend(sliding_window=128), "layers.1.attn of Some has sliding_window"),
        ("layers.1.attn", Attend(sinks=torch.zeros(2)), "has sinks"),
        ("layers.1.attn", Attend(kv_sharing_target_layer_name="layers.0.attn"), "reads another layer's keys"),
        ("layers.2.attn", Attend(), "has attention in layers [0, 2]"),
    ],
)
def test_layers_that_attend_otherwise_are_refused(path, attend, message):
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        find_layers("Some", Model(3), {"layers.0.attn": Attend(), path: attend})
