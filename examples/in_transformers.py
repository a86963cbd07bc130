"""Answer a question about a file with a model of Hugging Face transformers that decodes with ScoutAttention.

    python examples/in_transformers.py MODEL FILE "What does it say about X?" [BUDGET]

MODEL: what `AutoModelForCausalLM.from_pretrained` takes.   BUDGET: tokens that a step attends to, 1024 without.
"""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before PyTorch: waiting threads must not take the workers' cores

from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from scoutattention import scout


def main(name: str, path: str, question: str, budget: int = 1024) -> None:
    """Print the answer token by token, and what it took."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").eval()
    with open(path, encoding="utf-8") as file:
        text = f"{file.read()}\n\n{question}"
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt").to(model.device)
    with scout(model, budget=budget) as session:
        streamer = TextStreamer(tokenizer, skip_prompt=True)
        model.generate(**inputs, max_new_tokens=64, streamer=streamer)
        print(session.stats())


if __name__ == "__main__":
    if len(sys.argv) not in {4, 5}:
        sys.exit(__doc__)
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
