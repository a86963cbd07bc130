"""How text is cut into words before merges apply, by the names that GGUF files have for it.

The rules are llama.cpp's: names and regular expressions from its src/llama-vocab.cpp, as of llama-cpp-python 0.3.36,
and what its src/unicode.cpp makes of them. Its upper and lower case part ASCII letters only; other letters are in both.
"""

from typing import NamedTuple

from tokenizers import Regex, pre_tokenizers

_ENDINGS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"


def _words(digits: str, endings: str = rf"{_ENDINGS}|", letters: str = r"\p{L}") -> str:
    return rf"{endings}[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|{digits}| ?[^\s{letters}\p{{N}}]+[\r\n]*|{_SPACES}"


def _cased_words(digits: str, endings: str = "") -> str:
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{_UPPER}*{_LOWER}+{endings}|{before}{_UPPER}+{_LOWER}*{endings}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ONE, _THREE = r"\p{N}", r"\p{N}{1,3}"


class Rule(NamedTuple):
    """Regular expressions, each of which cuts what those before it left whole.

    whole_words: a word that is in the vocabulary is one token, whatever the merges are.
    adds_bos: a text begins with the token for that, unless the file says otherwise.
    """

    expressions: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False

    def splitter(self) -> pre_tokenizers.PreTokenizer:
        """The rule for the tokenizers package, with bytes as characters in the end."""
        splits = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in self.expressions]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_DEFAULT = Rule((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_PLAIN = Rule((_GPT2,))
_DIGITS = Rule((_ONE, _GPT2))
_QWEN2 = Rule((_words(_ONE),))
_LLAMA3 = Rule((_words(_THREE),), whole_words=True, adds_bos=True)
_GPT4O = Rule((_cased_words(_THREE, f"{_ENDINGS}?"),))

RULES = {
    "default": _DEFAULT,
    **dict.fromkeys(
        ("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "mpt", "olmo", "jais", "trillion"), _PLAIN
    ),
    "granite-docling": _PLAIN,
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open"), _QWEN2
    ),
    "grok-2": _QWEN2,
    "qwen35": Rule((_words(_ONE, letters=r"\p{L}\p{M}"),)),
    "ufakzeka": Rule((_words(_ONE, endings=""),)),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _LLAMA3
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Rule((_words(_THREE),))),
    "minicpm5": Rule((_THREE, _words(r"\p{N}+")), whole_words=True),
    "tekken": Rule((_cased_words(_ONE),), whole_words=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
    "deepseek-coder": Rule(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"(?:(?!\s)[\x{0800}-\x{9FA5}\x{AC00}-\x{D7FF}])+", _ONE)
    ),
}
