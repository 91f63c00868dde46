"""What a chat template puts around messages, read from renderings of probe conversations.

With it a text can be put into prompts that are rendered already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

SEPARATOR = "\n\n"
"""Between p and the text that it stands before within one message."""

Message = dict[str, Any]
Prompt = str | list[Message]
Render = Callable[[list[Message]], str]

_USER, _SYSTEM = "Kestrel probe question", "Kestrel probe instruction"
_ANSWER, _AGAIN = "Kestrel probe answer", "Kestrel probe follow-up"


@dataclass(frozen=True)
class Frame:
    """What a chat template writes around the first messages of a conversation.

    Attributes:
        user_head: the text before the first user message, if there is no system message.
        system_head: the text before a system message, or None if the template takes none.
        joint: the text between a system message and the first user message.
        turn: the text after a user message, if the template moves the system message to a later
            one in conversations of several turns, else None.
    """

    user_head: str
    system_head: str | None
    joint: str
    turn: str | None

    @classmethod
    def of(cls, render: Render) -> Frame | None:
        """Read a template, or None if it doesn't write a user message as it is."""
        asked = [{"role": "user", "content": _USER}]
        told = [{"role": "system", "content": _SYSTEM}]
        more = [{"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _AGAIN}]
        head, found, tail = render(asked).partition(_USER)
        if not found:
            return None
        try:
            full = render([*told, *asked])
            several = render([*told, *asked, *more])
        except TemplateError:
            return cls(head, None, "", None)
        before, _, rest = full.partition(_SYSTEM)
        joint, found, after = rest.partition(_USER)
        if not found or after != tail:
            return cls(head, None, "", None)
        frame = cls(head, before, joint, None)
        plain = render([*asked, *more])
        if frame.with_system(plain, _SYSTEM) == several:
            return frame
        turn = plain.partition(_USER)[2].partition(_ANSWER)[0].strip()
        return replace(frame, turn=turn) if turn else cls(head, None, "", None)

    def with_system(self, prompt: str, quality: str) -> str | None:
        """``prompt`` with p as its system message, or before the one that it has.

        Returns:
            None if the template didn't write ``prompt``, or takes no system message there.
        """
        if self.system_head is None or (self.turn and prompt.count(self.turn) > 1):
            return None
        if self.user_head and prompt.startswith(self.user_head):
            return self.system_head + quality + self.joint + prompt[len(self.user_head) :]
        if self.system_head and prompt.startswith(self.system_head):
            return self.system_head + quality + SEPARATOR + prompt[len(self.system_head) :]
        return None

    def with_prefix(self, prompt: str, quality: str) -> str | None:
        """``prompt`` with p at the head of its first user message, or None as above."""
        at = None
        if self.user_head and prompt.startswith(self.user_head):
            at = len(self.user_head)
        elif self.system_head and self.joint and prompt.startswith(self.system_head):
            start = prompt.find(self.joint, len(self.system_head))
            at = start + len(self.joint) if start >= 0 else None
        return None if at is None else prompt[:at] + quality + SEPARATOR + prompt[at:]

    def without(self, opening: str) -> Frame:
        """The same for prompts that lack the template's ``opening``, such as a BOS token."""
        system = self.system_head
        return replace(
            self,
            user_head=self.user_head.removeprefix(opening),
            system_head=None if system is None else system.removeprefix(opening),
        )


def renderer(tokenizer: Any, template: str) -> Render:
    """How ``template`` writes messages, up to where the answer begins."""

    def render(messages: list[Message]) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, tokenize=False
            )
        )

    return render
