"""Tiny tokenizers of the kinds that models have, and model directories with nothing else in them."""

import json
import random

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors


def byte_backend():
    """One token for each byte, and two special ones, of which the first begins every text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return backend


def long_byte_backend():
    """Tokens of one to four bytes, most of them parts of characters, and added tokens of every kind."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    draw = random.Random(1)
    words = ["".join(draw.choices(letters, k=draw.randint(2, 4))) for _ in range(100)]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(letters + words))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.decoder = decoders.ByteLevel()
    return _with_added(backend)


def byte_fallback_backend(decoder):
    """A vocabulary as Llama 2 has it: words with ▁ for spaces, and 256 tokens that are bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "a", "b", "▁b", "▁▁", "▁▁▁", "é", "\ufffd", "ab▁", ""]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    if decoder is not None:
        backend.decoder = decoder
    return _with_added(backend)


def llama2_decoder(strip=1):
    """The decoder of Llama 2's tokenizer."""
    spaces, lead = decoders.Replace("▁", " "), decoders.Strip(" ", strip, 0)
    return decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), lead])


def write(folder, template=None, **settings):
    """`byte_backend` as a model's directory has it."""
    byte_backend().save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, **settings}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _with_added(backend):
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens(["<é>", "ü", "<0x4"])
    return backend
