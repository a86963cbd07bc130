"""SentencePiece vocabularies of GGUF files, as those of Llama 2 and the first Mistral.

llama.cpp joins the two neighbours whose joint token has the best score, from single characters on, until no neighbours
make a token. Merges that are ranked by the joint token's score do the same, as long as scores differ.
"""

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, normalizers

from ...errors import ModelFileError, UnsupportedModelError
from .gguf_metadata import Metadata
from .gguf_vocabulary import NORMAL, UNUSED, Vocabulary

_SPACE = "\u2581"
"""What stands for a space in tokens."""


def sentencepiece_tokenizer(metadata: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer, without added tokens.

    Raises ModelFileError where scores are missing, UnsupportedModelError for a vocabulary that cannot spell all texts.
    """
    scores = metadata.numbers("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary.names):
        raise ModelFileError(
            f"{metadata.path}: tokenizer.ggml.scores gives {len(scores)} scores "
            f"for the {len(vocabulary.names)} tokens of tokenizer.ggml.tokens"
        )
    ids = vocabulary.ids
    missing = [name for name in (f"<0x{byte:02X}>" for byte in range(256)) if name not in ids]
    if missing:
        raise UnsupportedModelError(
            f"{metadata.path}: a SentencePiece vocabulary without the token {missing[0]} is not supported: "
            "only one with a token for each byte is"
        )
    model = models.BPE(ids, _merges(metadata, vocabulary, scores), byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    begins_with_space = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if begins_with_space else spaces
    first = [decoders.Strip(" ", 1, 0)] if begins_with_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *first]
    )
    return tokenizer


def _merges(metadata: Metadata, vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, the best score first, then in the order of the vocabulary."""
    ids = vocabulary.ids
    pairs = {name: list(_pairs(name, ids)) for name in vocabulary.names}
    merged = [name for name, found in pairs.items() if found]
    seen: dict[float, str] = {}
    for name in vocabulary.names:
        if vocabulary.kinds[ids[name]] not in (NORMAL, UNUSED):
            continue  # cut out of the text before merges apply
        strange = _unmergeable(name, ids)
        if strange is not None:
            raise UnsupportedModelError(
                f"{metadata.path}: the token {name!r} can be made of {strange!r}, which is no token itself: "
                "such a SentencePiece vocabulary is not supported"
            )
        score = scores[ids[name]]
        if pairs[name] and seen.setdefault(score, name) != name:
            raise UnsupportedModelError(
                f"{metadata.path}: tokenizer.ggml.scores gives {seen[score]!r} and {name!r} the same score, {score}: "
                "such a SentencePiece vocabulary is not supported"
            )
    merged.sort(key=lambda name: -scores[ids[name]])
    return [pair for name in merged for pair in sorted(pairs[name], key=lambda pair: (ids[pair[0]], ids[pair[1]]))]


def _pairs(name: str, ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(name)):
        if name[:cut] in ids and name[cut:] in ids:
            yield name[:cut], name[cut:]


def _unmergeable(name: str, ids: dict[str, int]) -> str | None:
    """A letter that is no token, and that llama.cpp would yet join with its neighbour to make this token."""
    for cut in {1, len(name) - 1} if len(name) > 1 else ():
        parts = name[:cut], name[cut:]
        strange = [part for part in parts if part not in ids]
        if strange and all(len(part) == 1 for part in strange):
            return strange[0]
    return None
