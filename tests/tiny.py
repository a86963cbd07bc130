"""Saving a tiny model as transformers does, with a tokenizer beside it."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel


def save(model: PreTrainedModel, directory: Path, **options: object) -> Path:
    """Save a model and a byte-level tokenizer; `options` go to `save_pretrained`."""
    model.save_pretrained(directory, **options)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
