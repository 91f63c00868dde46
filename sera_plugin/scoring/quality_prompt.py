"""p⊕x: a prompt with the quality prompt p in it, as the run's own chat template writes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sera_plugin.config.contrast import ContrastPrompts
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.scoring.frames import SEPARATOR, Frame, Message, Prompt, renderer

QUALITY_PROMPT = (
    "Please generate a response with a usefulness rating of 100 out of 100 for the following "
    "query. Note that the response should be harmless. The term 100 indicates the level of "
    "usefulness, where 100 is the maximum and 1 is the minimum. Query:"
)
"""The prompt of arXiv 2405.21040, section 3.2.2, word for word."""

_CONTRAST = "sera.selection.contrast.prompts"
_MARKUP = re.compile(r"<\|[^|>\s]+\|>|\[/?INST\]|<(start|end)_of_turn>|</?s>")


def quality_text(prompt: str | None, key: str = "sera.refine.prompt") -> str:
    """The text of p for the value of a key; null means the paper's.

    A value that names a file is that file's text. One without any white space (not even a line's
    end), or one line that ends like a file name, must name a file.

    Raises:
        SeraConfigError: one sentence, if there is no text or the file can't be read.
    """
    if prompt is None:
        return QUALITY_PROMPT
    text, shown = prompt.strip(), ascii(prompt if len(prompt) <= 80 else prompt[:77] + "...")
    if not text:
        raise SeraConfigError(
            f"{key}: {shown} is empty; write text, the path of a text file, or null "
            "for the paper's."
        )
    path = Path(text).expanduser() if "\n" not in text and len(text) < 4096 else None
    try:
        is_file = path is not None and path.is_file()
    except OSError:  # a text too long for a file name
        is_file = False
    if path is None or not is_file:
        if path is not None and (
            not re.search(r"\s", prompt) or re.search(r"[^.\s]\.(txt|md|jinja2?)$", text)
        ):
            raise SeraConfigError(
                f"{key}: {shown} is not a file; write a path that exists, or a text "
                "of several words or with a line's end."
            )
        return text
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SeraConfigError(f"{key}: {shown} can't be read as UTF-8 text ({error}).") from error
    if not text:
        raise SeraConfigError(f"{key}: {shown} is an empty file; write p into it.")
    return text


@dataclass(frozen=True)
class QualityWriter:
    """Puts p into prompts.

    Attributes:
        quality: the text of p.
        placement: ``system`` or ``user_prefix``.
        frames: of the templates that may have written the prompts.
        tokenizer: the run's tokenizer.
        block: the YAML's block with the placement, for errors.
    """

    quality: str
    placement: str
    frames: tuple[Frame, ...]
    tokenizer: Any
    block: str = "sera.refine"

    @classmethod
    def of(
        cls,
        quality: str,
        placement: str,
        tokenizer: Any,
        templates: Iterable[str],
        block: str = "sera.refine",
    ) -> QualityWriter:
        """Read the templates.

        Raises:
            SeraConfigError: one sentence, if p can't be the system message.
        """
        read = [Frame.of(renderer(tokenizer, template)) for template in templates]
        frames = [frame for frame in read if frame is not None]
        if placement == "system" and not any(f.system_head is not None for f in frames):
            why = "takes no system message" if frames else "is missing"
            raise SeraConfigError(
                f"{block}.placement: system can't be used because the chat template {why}; "
                "set it to user_prefix."
            )
        bos = tokenizer.bos_token or ""
        frames += [frame.without(bos) for frame in frames if bos]
        return cls(quality, placement, tuple(dict.fromkeys(frames)), tokenizer, block)

    def write(self, prompt: Prompt, name: str) -> Prompt:
        """p⊕x.

        Args:
            prompt: x as rendered text, or as messages.
            name: of the row, for errors.

        Raises:
            SeraConfigError: one sentence that names the row, if p has no place in it.
        """
        if isinstance(prompt, list):
            return self._into_messages(prompt, name)
        system = self.placement == "system"
        for frame in self.frames:
            place = frame.with_system if system else frame.with_prefix
            found = place(prompt, self.quality)
            if found is not None:
                return found
        if not system and not self._has_markup(prompt):
            bos = self.tokenizer.bos_token or ""
            opening = bos if bos and prompt.startswith(bos) else ""
            return opening + self.quality + SEPARATOR + prompt.removeprefix(opening)
        hint = "set it to user_prefix, or name" if system else "name"
        raise SeraConfigError(
            f"{self.block}.placement: {self.placement} can't be used for {name}, because no chat "
            f"template of the run writes p there in a prompt like {prompt[:60]!a}; {hint} the "
            "template that wrote it as chat_template: or chat_template_jinja:."
        )

    def _into_messages(self, prompt: Sequence[Message], name: str) -> list[Message]:
        role = "system" if self.placement == "system" else "user"
        at = next((i for i, message in enumerate(prompt) if message["role"] == role), None)
        if at is None and role == "system":
            return [{"role": "system", "content": self.quality}, *prompt]
        if at is None or not isinstance(prompt[at]["content"], str):
            raise SeraConfigError(
                f"{self.block}.placement: {self.placement} can't be used for {name}, whose prompt "
                "has no user message of plain text."
            )
        content = self.quality + SEPARATOR + prompt[at]["content"]
        return [*prompt[:at], {**prompt[at], "content": content}, *prompt[at + 1 :]]

    def tokens_of(self, answer: str) -> int:
        """Tokens of an answer's text."""
        return len(self.tokenizer(text=answer, add_special_tokens=False)["input_ids"])

    def _has_markup(self, prompt: str) -> bool:
        bos = self.tokenizer.bos_token
        special = [token for token in self.tokenizer.all_special_tokens if token != bos]
        body = prompt.removeprefix(bos or "")
        return bool(_MARKUP.search(body)) or any(token in body for token in special)

    def ids(self, prompt: Prompt, **options: Any) -> list[int]:
        """Token ids of a prompt, as the host finds them.

        Args:
            prompt: text or messages.
            options: what the host hands to the template for messages: ``tools`` and the like.
        """
        if isinstance(prompt, str):
            return list(self.tokenizer(text=prompt)["input_ids"])
        found = self.tokenizer.apply_chat_template(
            prompt, tokenize=True, return_dict=True, add_generation_prompt=True, **options
        )
        return list(found["input_ids"])


def opposite_texts(asked: ContrastPrompts) -> tuple[str, str | None]:
    """Both prompts as text.

    Raises:
        SeraConfigError: one sentence, if one is empty or names a file that can't be read.
    """
    negative = None
    if asked.negative is not None:
        negative = quality_text(asked.negative, f"{_CONTRAST}.negative")
    return quality_text(asked.positive, f"{_CONTRAST}.positive"), negative


def opposite_writers(
    asked: ContrastPrompts, tokenizer: Any, templates: Sequence[str]
) -> tuple[QualityWriter, QualityWriter | None]:
    """What puts both prompts into prompts.

    Raises:
        SeraConfigError: one sentence, if a prompt can't be used.
    """
    positive, negative = (
        None
        if text is None
        else QualityWriter.of(text, asked.placement, tokenizer, templates, _CONTRAST)
        for text in opposite_texts(asked)
    )
    assert positive is not None, "opposite_texts has refused it"
    return positive, negative


def check_prompts(writer: QualityWriter, dataset: Any, sequence_len: int) -> None:
    """Check that p has a place in every prompt, and room before an answer in one at least.

    Args:
        writer: puts p into prompts.
        dataset: pairs with the column ``prompt``, and answers as text if the prompts are text;
            without that column nothing is checked.
        sequence_len: most tokens of p⊕x and an answer.

    Raises:
        SeraConfigError: one sentence.
    """
    if "prompt" not in dataset.column_names:
        return
    shortest = None
    for number, row in enumerate(dataset.select_columns(["prompt", "chosen", "rejected"])):
        prompt = writer.write(row["prompt"], f"training pair {number}")
        if shortest is not None and shortest <= sequence_len:
            continue
        answers = [row[name] for name in ("chosen", "rejected") if isinstance(row[name], str)]
        tokens = len(writer.ids(prompt)) + max(map(writer.tokens_of, answers), default=1)
        shortest = tokens if shortest is None else min(shortest, tokens)
    if shortest is not None and shortest > sequence_len:
        raise SeraConfigError(
            f"sequence_len: {sequence_len} leaves no room for the prompt of {writer.block}, with "
            f"which the shortest of the pairs takes {shortest} tokens; use a shorter prompt or a "
            "larger sequence_len."
        )
