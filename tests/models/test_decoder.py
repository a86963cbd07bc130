import pytest
import torch

from scoutattention.kernels.native import RowKernels
from scoutattention.models.decoder import FEW_ROWS
from scoutattention.models.loader import load
from scoutattention.runtime.workers import Workers

from ..tiny import save
from . import families
from .dense import causal, prompt_logits

PROMPT = torch.randint(0, 256, (45,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module", params=families.FAMILIES)
def pair(request, tmp_path_factory):
    """A model of transformers, and ours loaded from what it saved."""
    model = families.make(request.param)
    return model, load(str(save(model, tmp_path_factory.mktemp(request.param)))).decoder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return load(str(save(families.make("qwen3"), tmp_path_factory.mktemp("tiny")))).decoder


def reference_logits(model, token_ids):
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0]


def test_logits_are_those_of_transformers(pair):
    model, decoder = pair
    expected = reference_logits(model, PROMPT)
    assert expected.std() > 0.1
    torch.testing.assert_close(prompt_logits(decoder, PROMPT), expected, atol=1e-4, rtol=0)


def test_few_rows_are_computed_natively_to_the_same_logits(pair):
    model, decoder = pair
    with Workers(2) as workers:
        kernels = RowKernels(workers)
        native, few = decoder.with_rows(kernels), PROMPT[:FEW_ROWS]
        expected = reference_logits(model, few)
        assert not torch.equal(prompt_logits(native, few), prompt_logits(decoder, few)), "other sums, other rounding"
        torch.testing.assert_close(prompt_logits(native, few), expected, atol=1e-4, rtol=0)
        assert torch.equal(prompt_logits(native, PROMPT), prompt_logits(decoder, PROMPT)), "many rows are PyTorch's"
        whole = decoder.with_rows(kernels, whole=kernels)
        assert torch.equal(prompt_logits(whole, few), prompt_logits(native, few)), "in one job, or in several"


def test_rope_is_that_of_transformers(pair):
    model, decoder = pair
    positions = torch.tensor([0, 1, 63, 64, 4095])
    cos, sin = model.model.rotary_emb(torch.zeros(1), positions[None])
    ours = decoder.rope(positions)
    torch.testing.assert_close(ours.cos, cos[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(ours.sin, sin[0], atol=1e-3, rtol=0)


def test_project_query_is_the_query_that_attention_gets(pair):
    _, decoder = pair
    rope, dense = decoder.rope(torch.arange(len(PROMPT))), causal(decoder.shape)
    seen = []

    def attend(layer, q, k, v, x):
        seen.append(layer)
        torch.testing.assert_close(decoder.project_query(layer, x, rope), q, atol=1e-5, rtol=0)
        return dense(layer, q, k, v, x)

    decoder.forward(torch.tensor(PROMPT), rope, attend)
    assert seen == list(range(decoder.shape.num_layers))


def test_attend_gets_contiguous_tensors_of_the_promised_shapes(decoder):
    shape = decoder.shape

    def attend(layer, q, k, v, x):
        heads = (shape.num_kv_heads, shape.group_size, shape.head_dim)
        assert q.shape == (5, *heads)
        assert k.shape == v.shape == (5, heads[0], heads[2])
        assert x.shape == (5, shape.hidden_size)
        assert all(tensor.is_contiguous() for tensor in (q, k, v, x))
        return q

    hidden = decoder.forward(torch.arange(5), decoder.rope(torch.arange(5)), attend)
    assert hidden.shape == (5, shape.hidden_size)


def test_a_batch_is_its_sequences_side_by_side(decoder):
    tokens, positions = torch.tensor([3, 200, 77]), torch.tensor([0, 1000, 31])

    def forward(rows):
        mixed = lambda layer, q, k, v, x: q.tanh() + v.unsqueeze(2) + k.unsqueeze(2)  # noqa: E731
        return decoder.forward(tokens[rows], decoder.rope(positions[rows]), mixed)

    apart = torch.cat([forward(slice(row, row + 1)) for row in range(3)])
    torch.testing.assert_close(forward(slice(None)), apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "first"),
    [(1, None), (7, None), (len(PROMPT), None), (1000, None), (3, 7), (4, 1000), (3, len(PROMPT) - 1)],
)
def test_a_prompt_in_pieces_is_the_prompt_at_once(decoder, size, first):
    count, shape, dense = len(PROMPT), decoder.shape, causal(decoder.shape)
    kept: dict[int, list] = {}

    def attend(layer, q, k, v, x):
        assert all(layer >= before for before in kept), "a layer reads all pieces before the next one reads any"
        kept.setdefault(layer, []).append((q, k, v))
        q, k, v = (torch.cat(parts) for parts in zip(*kept[layer], strict=True))
        yield  # a turn of its own, in which nothing more was done
        return dense(layer, q, k, v, x)[-len(x) :]

    hidden = []

    def read():
        rope = decoder.rope(torch.arange(count))
        hidden.append((yield from decoder.read(torch.tensor(PROMPT), rope, attend, size, first)))

    told, sizes = [0], [min(count, first or size)]
    while sum(sizes) < count:
        sizes.append(min(size, count - sum(sizes)))
    for layer in range(shape.num_layers):
        for number, piece in enumerate(sizes):
            start = layer * count + sum(sizes[:number])
            told.append(told[-1])  # within attention
            told += [(start + min(piece, part + size)) // shape.num_layers for part in range(0, piece, size)]
    assert list(read()) == told[1:]
    assert [len(q) for q, *_ in kept[0]] == sizes
    logits = decoder.logits(decoder.normed_output(hidden[0]))
    torch.testing.assert_close(logits, prompt_logits(decoder, PROMPT), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_half_precision_follows_transformers(dtype, tolerance, tmp_path):
    model = families.make("qwen3").to(dtype)
    decoder = load(str(save(model, tmp_path))).decoder
    assert decoder.weights.embedding.dtype == dtype
    assert decoder.shape.dtype_bytes == 2
    ours = prompt_logits(decoder, PROMPT)
    assert ours.dtype == torch.float32
    assert (ours - reference_logits(model, PROMPT).float()).abs().max() < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_few_rows_of_half_precision_weights_are_computed_in_float32(dtype, tolerance, tmp_path):
    model = families.make("qwen3").to(dtype)
    decoder = load(str(save(model, tmp_path))).decoder
    few, seen = PROMPT[:5], []

    def attend(layer, q, k, v, x):
        seen.append((q.dtype, k.dtype, v.dtype, x.dtype if layer else torch.float32))
        return causal(decoder.shape)(layer, q, k.float(), v.float(), x)

    with Workers(2) as workers:
        native = decoder.with_rows(RowKernels(workers))
        hidden = native.forward(torch.tensor(few), native.rope(torch.arange(5)), attend)
        logits = native.logits(hidden)
    assert set(seen) == {(torch.float32, dtype, dtype, torch.float32)}
    assert (logits - reference_logits(model.float(), few)).abs().max() < tolerance
