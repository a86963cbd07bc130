"""Tokens that end an answer, known by their names: GGUF files often do not declare them."""

from collections.abc import Iterable

END_NAMES = frozenset(
    (
        # of a turn or a text
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<end_of_turn>",
        "<turn|>",
        "<|tool_response>",
        "<end_of_utterance>",
        "<eos>",
        "</s>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "[e~[",
        "<｜end▁of▁sentence｜>",  # noqa: RUF001  (DeepSeek writes it with these bars)
        # of a file, or of a repository's name, in models that fill in code
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
        "<|file_sep|>",
    )
)
"""The names that llama.cpp takes for ends, whatever the file declares."""


def end_of_turn_ids(names: Iterable[tuple[int, str]], declared: Iterable[int] = ()) -> frozenset[int]:
    """The ids that end an answer of a GGUF model, by llama.cpp's rule.

    names: each token's id and text; where two have the same text, the last one counts.
    declared: the ids that the file's metadata gives (eos, eot, eom).
    """
    ids = {name: token_id for token_id, name in names if name in END_NAMES}
    ends = set(ids.values()) | set(declared)
    if "<|end|>" in ids and _channels(set(ids)):
        ends.discard(ids["<|end|>"])  # it ends a message, after which another one of the same answer follows
    if "</s>" in ids and "<|tool_response>" in ids:
        ends.discard(ids["</s>"])  # it is text
    return frozenset(ends)


def _channels(names: set[str]) -> bool:
    """Whether answers consist of several messages, each with an end of its own."""
    calls = "<|call|>" in names or "<|calls|>" in names
    return calls and ("<|return|>" in names or "<|flush|>" in names)
