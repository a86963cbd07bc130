import pytest

from scoutattention.models.ends import end_of_turn_ids


@pytest.mark.parametrize(
    ("names", "declared", "ends"),
    [
        ([], (), set()),
        (["a", "<|eot_id|>", "<|im_start|>"], (), {1}),
        (["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], (1,), {1, 2, 3}),
        (["<|endoftext|>", "<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"], (), {0, 1, 2, 3, 4}),
        (["<s>", "</s>", "<end_of_turn>", "<my_end>"], (3,), {1, 2, 3}),
        (["<|end|>", "<|return|>"], (), {0, 1}),
        (["<|end|>", "<|return|>", "<|call|>"], (0,), {1, 2}),
        (["<|end|>", "<|flush|>", "<|calls|>"], (), {1, 2}),
        (["<|end|>", "<|flush|>", "<|return|>"], (), {0, 1, 2}),
        (["</s>", "<|tool_response>", "<turn|>"], (0,), {1, 2}),
        (["<|eot_id|>", "<|eot_id|>"], (), {1}),
    ],
)
def test_ends_are_those_of_llama_cpp(names, declared, ends):
    assert end_of_turn_ids(enumerate(names), declared) == ends
