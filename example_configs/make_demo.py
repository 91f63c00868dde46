"""Make what ``demo.yml`` needs, without a network: a tiny SFT model and noisy preference pairs.

The world is a zoo: every animal has a home, a food and a colour. The model is trained on questions
and answers about it, some of them wrong, so that it answers in whole sentences but not always
truly. In the preference pairs the true answer is chosen, except that the labels of about three
pairs in ten are swapped; the column ``flipped`` says which, and only ``show_demo.py`` reads it.

Usage: ``python example_configs/make_demo.py [folder]``; the default folder is ``demo-output``.
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 7
PAIRS, HELD_OUT = 320, 64
NOISE = 0.3
"""Share of training pairs whose labels are swapped."""
FALSEHOOD = 0.35
"""Share of wrong answers in the SFT data, so that there is something left to learn."""
STEPS, BATCH = 500, 32

ANIMALS = [
    *("fox", "owl", "bear", "wolf", "frog", "crab", "deer", "mole"),
    *("hare", "seal", "goat", "crow", "duck", "lynx", "toad", "swan"),
]
FACTS = {
    "home": ["forest", "river", "desert", "mountain", "meadow", "cave", "lake", "burrow"],
    "food": ["berries", "fish", "leaves", "seeds", "grass", "insects", "roots", "honey"],
    "colour": ["red", "brown", "white", "black", "grey", "golden", "green", "spotted"],
}
QUESTIONS = {
    "home": ("where does the {} live ?", "tell me the home of the {} .", "which home has the {} ?"),
    "food": ("what does the {} eat ?", "tell me the food of the {} .", "which food has the {} ?"),
    "colour": (
        "what colour is the {} ?",
        "tell me the colour of the {} .",
        "which colour has the {} ?",
    ),
}
ANSWERS = {
    "home": ("the {} lives in the {} .", "you find the {} in the {} , my friend ."),
    "food": ("the {} eats {} .", "you can see the {} eat {} , my friend ."),
    "colour": ("the {} is {} .", "you will see that the {} is {} , my friend ."),
}
OPENINGS = ("", "please , ", "hello , ", "quick : ")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Question:
    """A question about one fact, with the words that answer it."""

    animal: str
    fact: str
    text: str
    truth: str

    def answers(self, draw: random.Random) -> tuple[str, str]:
        """A true and a wrong sentence of the same form."""
        wrong = draw.choice([word for word in FACTS[self.fact] if word != self.truth])
        form = draw.choice(ANSWERS[self.fact])
        return form.format(self.animal, self.truth), form.format(self.animal, wrong)

    def is_true(self, answer: str) -> bool:
        """Whether a sentence is about this animal and names its fact."""
        words = answer.split()
        return self.animal in words and self.truth in words


def questions(seed: int = SEED) -> list[Question]:
    """Every question that can be asked, in a fixed order."""
    draw = random.Random(seed)
    return [
        Question(animal, fact, opening + form.format(animal), truth)
        for animal in ANIMALS
        for fact, words in FACTS.items()
        for truth in [draw.choice(words)]
        for form in QUESTIONS[fact]
        for opening in OPENINGS
    ]


def preference_pairs(seed: int = SEED) -> tuple[list[dict], list[dict]]:
    """Training pairs with label noise, and held-out pairs without; they share no question."""
    draw = random.Random(seed + 1)
    asked = draw.sample(questions(seed), PAIRS + HELD_OUT)
    rows = []
    for number, question in enumerate(asked):
        good, bad = question.answers(draw)
        flipped = number < PAIRS and draw.random() < NOISE
        if flipped:
            good, bad = bad, good
        rows.append(
            {
                "messages": [{"role": "user", "content": question.text}],
                "chosen": {"role": "assistant", "content": good},
                "rejected": {"role": "assistant", "content": bad},
                "flipped": flipped,
            }
        )
    return rows[:PAIRS], rows[PAIRS:]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the zoo, and a ChatML template."""
    texts = [*OPENINGS, "user assistant system", *ANIMALS]
    texts += [form for forms in (QUESTIONS, ANSWERS) for kind in forms.values() for form in kind]
    texts += [word for kind in FACTS.values() for word in kind]
    found = dict.fromkeys(word for text in texts for word in text.split() if word != "{}")
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *found])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def sft_model(tokenizer: PreTrainedTokenizerFast, seed: int = SEED) -> LlamaForCausalLM:
    """A small Llama, trained on conversations about the zoo until it answers in sentences."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # more threads only wait for each other on matrices this small
    draw = random.Random(seed + 2)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS)
    asked, ids = questions(seed), tokenizer.convert_tokens_to_ids
    opening = [ids("<|im_start|>"), ids("assistant")]
    for step in range(STEPS):
        batch = draw.sample(asked, BATCH)
        texts = [
            tokenizer.apply_chat_template(
                [
                    {"role": "user", "content": question.text},
                    {
                        "role": "assistant",
                        "content": question.answers(draw)[draw.random() < FALSEHOOD],
                    },
                ],
                tokenize=False,
            ).rstrip()
            for question in batch
        ]
        inputs = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        for row, tokens in enumerate(inputs["input_ids"].tolist()):
            start = next(i for i in range(len(tokens)) if tokens[i : i + 2] == opening)
            labels[row, : start + 2] = -100
        loss = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            print(f"  SFT step {step + 1}/{STEPS}, loss {loss.item():.3f}", flush=True)
    return model


def make(folder: Path, seed: int = SEED) -> None:
    """Write the model and both files of pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    tokenizer = word_tokenizer()
    model = sft_model(tokenizer, seed)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    train, held_out = preference_pairs(seed)
    for name, rows in (("train", train), ("eval", held_out)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    flipped = sum(row["flipped"] for row in train)
    print(
        f"{folder}: a model of {model.num_parameters():,} parameters, {len(train)} pairs with "
        f"{flipped} swapped labels, {len(held_out)} pairs to evaluate on "
        f"({time.perf_counter() - start:.0f} s)"
    )


if __name__ == "__main__":
    make(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output"))
