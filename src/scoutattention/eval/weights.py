"""What keeping weights in few bits costs: in memory, and in the likelihood of next tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import EngineConfig, WeightsName
from ..models.layers import Weight
from ..models.loader import LoadedModel, load
from .fidelity.measure import Watch, check_lengths, read
from .text import Text, first_tokens


@dataclass(frozen=True)
class KeptWeights:
    """A way to keep the weights, against the same file's weights in float32, with full attention.

    nbytes: of all matrices.   kl_mean, kl_most: KL(float32 || kept) of the next token in nats, over the steps.
    """

    weights: WeightsName
    nbytes: int
    kl_mean: float
    kl_most: float


def compare(
    model: str, text: Text, lengths: tuple[int, int], kept: Sequence[WeightsName], watch: Watch
) -> list[KeptWeights]:
    """Each way to keep the weights, on the beginning of a text, with a cache in float32.

    lengths: tokens that are read as a prompt, and those that are fed one by one and compared.
    Raises what loading the model raises, and PromptError where the text is too short.
    """
    context, steps = lengths
    config = EngineConfig(max_model_len=context + steps + 1, max_num_seqs=1)
    exact = load(model, "float32", in_place=False)
    check_lengths(exact.decoder.shape, EngineConfig(), context, steps)
    tokens = first_tokens(exact.tokenizer, text, context + steps + 1)
    truth = read(exact.decoder, config, tokens, context, watch).log_probs
    del exact
    rows = []
    for weights in kept:
        loaded = load(model, "float32", weights=weights)
        found = read(loaded.decoder, config, tokens, context, watch).log_probs
        kl = (truth.exp() * (truth - found)).sum(-1)
        rows.append(KeptWeights(weights, nbytes(loaded), float(kl.mean()), float(kl.max())))
    return rows


def nbytes(model: LoadedModel) -> int:
    """Bytes of all matrices of a model, in a file or in memory; a table that is also the head counts once."""
    weights = model.decoder.weights
    layers = (matrix for layer in weights.layers for matrix in (layer.qkv, layer.output, layer.gate_up, layer.down))
    tables: list[Weight] = [weights.embedding, *([] if weights.head is weights.embedding else [weights.head])]
    return sum(matrix.nbytes for matrix in (*tables, *layers))
