"""Fields of other servers' requests: which are refused here, since they change an answer, and which change nothing."""

import logging
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from ..errors import refused

LOG = logging.getLogger(__name__)
ALIKE = 0.8
"""Of names that are taken for a misspelt one."""
NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values that mean that a field is not used."""
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (None, True),
    "add_special_tokens": (None, False),
    "allowed_token_ids": NOTHING,
    "audio": NOTHING,
    "bad_words": NOTHING,
    "best_of": (None, 1),
    "budget": (None,),
    "chat_template": NOTHING,
    "continue_final_message": NOTHING,
    "documents": NOTHING,
    "echo": NOTHING,
    "dry_multiplier": NOTHING,
    "frequency_penalty_range": NOTHING,
    "function_call": (None, "auto", "none"),
    "functions": NOTHING,
    "grammar": NOTHING,
    "guided_choice": NOTHING,
    "guided_decoding_backend": NOTHING,
    "guided_grammar": NOTHING,
    "guided_json": NOTHING,
    "guided_regex": NOTHING,
    "include_stop_str_in_output": NOTHING,
    "json_schema": NOTHING,
    "length_penalty": (None, 1, 1.0),
    "logits_processors": NOTHING,
    "mirostat": NOTHING,
    "modalities": (None, ["text"]),
    "n_predict": (None,),
    "num_predict": (None,),
    "prediction": NOTHING,
    "priority": NOTHING,
    "prompt_embeds": NOTHING,
    "prompt_logprobs": (None, False),
    "reasoning_effort": NOTHING,
    "regex": NOTHING,
    "return_tokens_as_token_ids": NOTHING,
    "scout": NOTHING,
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "stop_token_ids": NOTHING,
    "structured_outputs": NOTHING,
    "suffix": NOTHING,
    "tfs_z": (None, 1, 1.0),
    "truncate_prompt_tokens": (None,),
    "typical_p": (None, 0, 1, 1.0),
    "use_beam_search": NOTHING,
    "verbosity": NOTHING,
    "web_search_options": NOTHING,
    "xtc_probability": NOTHING,
}
"""Fields that change an answer and are not read, and the values with which they change nothing."""
SERVERS = "the method's settings are the server's, for all requests"
INSTEAD: Mapping[str, str] = {
    "prompt_logprobs": "set echo and logprobs (/v1/completions)",
    "functions": "give tools",
    "function_call": "give tool_choice",
    "guided_json": "give response_format",
    "json_schema": "give response_format",
    "structured_outputs": "give response_format",
    "scout": SERVERS,
    "budget": SERVERS,
    "n_predict": "give max_tokens",
    "num_predict": "give max_tokens",
    "add_special_tokens": "the chat template writes the special tokens",
    "best_of": "give n, and choose among the answers",
    "chat_template": "render the conversation yourself, and send it to /v1/completions",
}
"""What to do instead of using a field, where something can be done."""
HARMLESS = frozenset(
    (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "request_id"),
        *("prompt_cache_retention", "parallel_tool_calls"),
    )
)
"""Fields that say nothing about the answer."""
_told: set[str] = set()


def refuse_unsupported(request: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises ApiError where a request has a field that is not read here and would change the answer.

    known: the fields that are read. A field that nobody knows is ignored, and the log says so once, except where it
    is much like a known one.
    """
    names = tuple(known)
    for name, value in request.items():
        if name in names or name in HARMLESS:
            continue
        if name in UNSUPPORTED:
            if value not in UNSUPPORTED[name]:
                raise refused(f"{name} is not supported: {INSTEAD.get(name, 'leave it out')}", name)
        elif alike := get_close_matches(name, names, 1, ALIKE):
            raise refused(f"there is no field {name!r}: write {alike[0]}, or leave it out", name)
        elif name not in _told and len(_told) < 100:
            _told.add(name)
            LOG.warning("a request's field %r is not known, and ignored", name[:80])
