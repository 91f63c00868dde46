"""p⊕x: a quality prompt in prompts that chat templates have written already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import assets
import axolotl.utils.chat_templates
import pytest
from axolotl.prompt_strategies.dpo import user_defined, zephyr
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from jinja2 import TemplateError

from sera_plugin.host.loading import chat_templates
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.scoring.frames import Frame, renderer
from sera_plugin.scoring.quality_prompt import (
    QUALITY_PROMPT,
    QualityWriter,
    check_prompts,
    quality_text,
)

P = "Be kind and exact."
USER, SYSTEM = "What is it?", "You sing."
LATER = [{"role": "assistant", "content": "It."}, {"role": "user", "content": "Really?"}]
TEMPLATES = Path(axolotl.utils.chat_templates.__file__).parent / "templates"
MOVES_SYSTEM = {"mistral_v2v3", "mistral_v3_tekken", "pixtral"}
NO_SYSTEM = {"gemma"}
ONE_MESSAGE = MOVES_SYSTEM | {"mistral_v1", "gemma3", "gemma3n"}
"""Templates that write the system message into a user message."""

WORDS = assets.tokenizer([USER, SYSTEM, P], "llama")


def names() -> list[str]:
    """Axolotl's templates for conversations of text that alternate."""
    found = []
    for path in sorted(TEMPLATES.glob("*.jinja")):
        render = renderer(WORDS, path.read_text())
        try:
            render([{"role": "user", "content": USER}])
        except TemplateError:  # a template for something else than text
            continue
        found.append(path.stem)
    return found


def test_most_templates_of_the_host_are_looked_at() -> None:
    assert len(names()) > 30
    assert {"chatml", "llama3", "qwen3", *MOVES_SYSTEM, *NO_SYSTEM} <= set(names())


@pytest.mark.parametrize("turns", [[], LATER], ids=["one turn", "several turns"])
@pytest.mark.parametrize("own", [False, True], ids=["", "own system message"])
@pytest.mark.parametrize("name", names())
def test_p_in_a_rendered_prompt_is_p_in_its_messages(name: str, own: bool, turns: Any) -> None:
    render = renderer(WORDS, (TEMPLATES / f"{name}.jinja").read_text())
    frame = Frame.of(render)
    assert frame is not None
    if name in NO_SYSTEM:
        assert frame.system_head is None
        assert frame.with_system(render([{"role": "user", "content": USER}]), P) is None
        own = False
    asked = [{"role": "user", "content": USER}, *turns]
    told = [{"role": "system", "content": SYSTEM}] if own else []
    prompt = render([*told, *asked])
    found = frame.with_system(prompt, P)
    if name not in NO_SYSTEM and (found is not None or not turns or name not in MOVES_SYSTEM):
        whole = {"role": "system", "content": f"{P}\n\n{SYSTEM}" if own else P}
        if not (name == "llava" and own):  # it writes a system message without its role
            assert found == render([whole, *asked])
    if name in MOVES_SYSTEM and turns:
        assert found is None
    prefixed = [{"role": "user", "content": f"{P}\n\n{USER}"}, *turns]
    if not (own and name in ONE_MESSAGE | {"llava"}):
        assert frame.with_prefix(prompt, P) == render([*told, *prefixed])


def writer(placement: str, *templates: str, tokenizer: Any = WORDS) -> QualityWriter:
    return QualityWriter.of(P, placement, tokenizer, templates or [assets.LLAMA3])


def test_prompts_of_several_templates_in_one_run() -> None:
    both = writer("system", assets.LLAMA3, assets.CHATML)
    chatml = f"<|im_start|>user\n{USER}<|im_end|>\n<|im_start|>assistant\n"
    assert both.write(chatml, "") == f"<|im_start|>system\n{P}<|im_end|>\n{chatml}"
    llama = f"<|start_header_id|>user<|end_header_id|>\n\n{USER}<|eot_id|>"
    head = f"<|start_header_id|>system<|end_header_id|>\n\n{P}<|eot_id|>"
    assert both.write(llama, "") == head + llama, "Axolotl's llama3.* types write no BOS token"
    begun = "<|begin_of_text|>"
    assert both.write(begun + llama, "") == begun + head + llama


def test_plain_text() -> None:
    plain = writer("user_prefix")
    assert plain.write("Tell me.", "") == f"{P}\n\nTell me."
    assert plain.write("<|begin_of_text|>Tell me.", "") == f"<|begin_of_text|>{P}\n\nTell me."


@pytest.mark.parametrize("prompt", ["[INST] Tell me. [/INST]", "<|user|>Tell me.", "a<|eot_id|>"])
def test_markup_of_an_unknown_template_is_refused(prompt: str) -> None:
    with pytest.raises(SeraConfigError, match="user_prefix can't be used for training pair 3"):
        writer("user_prefix").write(prompt, "training pair 3")


@pytest.mark.parametrize(
    ("written", "takes_system"),
    [
        ("[INST] {prompt} [/INST] ", False),
        ('<<SYS>>{system}<</SYS>>\n"{{\\{prompt}é😀%}}" [/INST]', True),
        ("### System:\n{system}\n### User:\n{prompt}\n### Answer:\n", True),
    ],
)
@pytest.mark.parametrize("told", ["", SYSTEM])
def test_a_format_of_the_user_is_a_template(written: str, takes_system: bool, told: str) -> None:
    kind = {"field_prompt": "question", "field_chosen": "good", "prompt_format": written}
    cfg = DictDefault(datasets=[{"path": "x", "type": kind}])
    rewrite = user_defined.default(cfg)

    def prompt(question: str, system: str) -> str:
        row = {"question": question, "system": system, "good": "a", "rejected": "b"}
        return str(rewrite(row)["prompt"])

    templates = chat_templates(cfg, assets.tokenizer([USER], "llama"))
    prefixed = writer("user_prefix", *templates).write(prompt(USER, told), "")
    assert prefixed == prompt(f"{P}\n\n{USER}", told)
    if takes_system:
        both = f"{P}\n\n{told}" if told else P
        assert writer("system", *templates).write(prompt(USER, told), "") == prompt(USER, both)


def test_a_type_of_the_host_writes_as_its_template_does() -> None:
    cfg = DictDefault(datasets=[{"path": "x", "type": "zephyr.nectar"}])
    rewrite = zephyr.nectar(cfg)

    def prompt(question: str) -> str:
        answers = [{"answer": "b", "rank": 1.0}, {"answer": "a", "rank": 2.0}]
        return str(rewrite({"prompt": question, "answers": answers})["prompt"])

    templates = chat_templates(cfg, assets.tokenizer([USER], "llama"))
    assert writer("user_prefix", *templates).write(prompt(USER), "") == prompt(f"{P}\n\n{USER}")
    system = writer("system", *templates).write(prompt(USER), "")
    assert system == prompt(USER).replace("<|system|>\n", f"<|system|>\n{P}")


def test_text_that_no_template_wrote_takes_no_system_message() -> None:
    with pytest.raises(SeraConfigError, match=r"for example abc.*set it to user_prefix"):
        writer("system").write("Tell me.", "example abc")


def test_messages() -> None:
    asked, told = {"role": "user", "content": USER}, {"role": "system", "content": SYSTEM}
    system, prefix = writer("system"), writer("user_prefix")
    assert system.write([asked], "") == [{"role": "system", "content": P}, asked]
    assert system.write([told, asked], "") == [told | {"content": f"{P}\n\n{SYSTEM}"}, asked]
    assert prefix.write([told, asked], "") == [told, asked | {"content": f"{P}\n\n{USER}"}]
    with pytest.raises(SeraConfigError, match="example 7, whose prompt has no user message"):
        prefix.write([told], "example 7")


def test_ids_of_text_and_of_messages_are_the_same() -> None:
    # The template writes the BOS token, and so would the tokenizer.
    words = assets.tokenizer([USER], "qwen")
    found = writer("system", assets.CHATML, tokenizer=words)
    messages = [{"role": "user", "content": USER}]
    text = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found.ids(found.write(text, "")) == found.ids(found.write(messages, ""))


@pytest.mark.parametrize("template", ["{{ messages[0]['content'] | upper }}", "always the same"])
def test_templates_that_can_not_be_read(template: str) -> None:
    with pytest.raises(SeraConfigError, match="the chat template is missing; set it to user_pre"):
        writer("system", template)


def test_templates_without_system_role() -> None:
    for template in (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    ):
        with pytest.raises(SeraConfigError, match="takes no system message; set it to user_pre"):
            writer("system", template)
        assert writer("user_prefix", template).write("<user>a", "") == f"<user>{P}\n\na"


def test_quality_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text(f"\n{P}\nTwice. \n", encoding="utf-8")
    assert quality_text(None) == QUALITY_PROMPT
    assert quality_text(" Be kind. ") == "Be kind."
    assert quality_text("good\n") == "good", "a word with a line's end is text"
    assert quality_text("p.txt") == quality_text(str(tmp_path / "p.txt")) == f"{P}\nTwice."
    assert (
        quality_text("Be kind.\nEnd with a file name.txt") == "Be kind.\nEnd with a file name.txt"
    )
    assert quality_text("long " * 2000) == ("long " * 2000).strip()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("none.txt", "is not a file"),
        ("prompts/quality", "is not a file"),
        ("my prompts/quality.md", "is not a file"),
        ("empty.txt", "is an empty file"),
        ("latin.txt", "can't be read as UTF-8 text"),
    ],
)
def test_bad_prompts(
    value: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(SeraConfigError, match=f"^sera.refine.prompt: .*{words}"):
        quality_text(value)


def test_no_room() -> None:
    rows = [{"prompt": x * 9, "chosen": "bcd", "rejected": "e"} for x in ("What ", "a ")]
    dataset = Dataset.from_list(rows)
    found = writer("user_prefix")
    needed = len(found.ids(f"{P}\n\n" + "a " * 9)) + 3
    check_prompts(found, dataset, needed)
    with pytest.raises(SeraConfigError, match=f"the shortest of the pairs takes {needed} tokens"):
        check_prompts(found, dataset, needed - 1)


def test_templates_of_a_run() -> None:
    entries = [
        {"path": "a", "type": "chat_template.default"},
        {"path": "b", "type": "chatml.intel"},
        {"path": "c", "type": "chat_template.argilla_chat", "chat_template": "phi_3"},
        {"path": "d", "type": {"field_prompt": "prompt"}},
        {"path": "e"},
    ]
    found = chat_templates(DictDefault({"datasets": entries}), WORDS)
    read = [(TEMPLATES / f"{name}.jinja").read_text() for name in ("chatml", "phi_3")]
    assert [t.strip() for t in found] == [assets.LLAMA3, *(t.strip() for t in read)]
    bare = assets.tokenizer([USER], "llama")
    bare.chat_template = None
    assert chat_templates(DictDefault({"datasets": entries[3:]}), bare) == []
