from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerBase

from agentmem.chat import Chat, ChatContext
from agentmem.chat.appending import RECENT
from agentmem.errors import InvalidInput, TemplateNotAppendable
from agentmem.types import Message, Tail, ToolCall

LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}>{% endif %}"
HISTORY = (Message("user", "a"), Message("assistant", "b"))


def chat_with(tokenizer: PreTrainedTokenizerBase, template: str) -> Chat:
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = template
    return Chat(tokenizer)


def added(chat: Chat, *new: Message, history: tuple[Message, ...] = HISTORY, tail: Tail = Tail.CLOSED) -> str:
    ids = chat.encode(ChatContext(history=history, tail=tail), new, reply=False)
    return str(chat._tokenizer.decode(ids))


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages | length }}", "shows the last message 0 times"),
        (LOOP + "{% for m in messages %}{{ m.content }}{% endfor %}", "shows the last message 2 times"),
        ("{% for m in messages %}{{ m.content }}{{ '.' if loop.last else ',' }}{% endfor %}", "closes in another way when one follows"),
        (LOOP + "{% if messages | length == 2 %}{{ raise_exception('not two') }}{% endif %}", "history is refused: not two"),
    ],
)
def test_templates_without_a_stable_place_are_refused(tokenizer: PreTrainedTokenizerBase, template: str, problem: str) -> None:
    """A template that hides, repeats or re-closes the last message, placeholder or not, cannot be appended to, and the reason is told."""
    with pytest.raises(TemplateNotAppendable, match=f"cannot be appended to: .*{problem}.*with a placeholder history: "):
        added(chat_with(tokenizer, template), Message("user", "c"))


@pytest.mark.parametrize(("tail", "closing"), [(Tail.CLOSED, ""), (Tail.REPLY, "<|im_end|>")])
def test_a_history_that_is_refused_is_replaced(tokenizer: PreTrainedTokenizerBase, tail: Tail, closing: str) -> None:
    """Where the template refuses the real history, the difference is the one after a placeholder."""
    chat = chat_with(tokenizer, LOOP + "{% if messages[0].content == 'bad' %}{{ raise_exception('bad history') }}{% endif %}")
    history = (Message("user", "bad"), Message("assistant", "b"))
    for role in ("user", "system", "tool"):
        shown = "user\n<tool_response>\nc\n</tool_response>" if role == "tool" else f"{role}\nc"
        assert f"{closing}<|im_start|>{shown}<|im_end|>" == added(chat, Message(role, "c"), history=history, tail=tail)
    assert f"{closing}<|im_start|>assistant\nc<|im_end|>" == added(chat, Message("assistant", "c"), history=history, tail=tail)


def test_a_message_that_only_the_recent_part_refuses_is_taken(tokenizer: PreTrainedTokenizerBase) -> None:
    """A template that needs an old message gets the whole history before the new message is refused."""
    chat = chat_with(
        tokenizer, LOOP + "{% if messages | length > 2 and messages[0].content != 'first' %}{{ raise_exception('x') }}{% endif %}"
    )
    history = (Message("user", "first"), *HISTORY * 20)
    assert "<|im_start|>user\nc<|im_end|>" == added(chat, Message("user", "c"), history=history)
    with pytest.raises(InvalidInput, match="refuses message 0 .user.: x"):
        added(chat, Message("user", "c"), history=(Message("user", "second"), Message("assistant", "b")))


def test_a_prelude_that_a_first_message_rewrites_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """A rendered prelude is never changed: a first message that would rewrite it cannot be appended."""
    chat = chat_with(tokenizer, "{{ 'X' if messages[-1].role == 'assistant' else 'Y' }}" + LOOP)
    assert chat.prelude("s", ())
    with pytest.raises(TemplateNotAppendable, match="renders the system prompt differently"):
        chat.encode(ChatContext("s", tail=Tail.CLOSED, prelude_rendered=True), [Message("assistant", "a")], reply=False)


@pytest.mark.parametrize(
    "template",
    [
        LOOP + "{% if messages | length == 1 %}{{ raise_exception('too short') }}{% endif %}",
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}",
        "{{ messages | length }}" + LOOP,
    ],
)
def test_a_prelude_that_cannot_stand_alone_is_empty(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """A system prompt that is refused alone, not shown, or shown otherwise before a message is left to the first message."""
    assert [] == chat_with(tokenizer, template).prelude("s", ())


def test_a_call_that_the_template_ends_differently_is_closed_as_it_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    """After a generated call, what follows the end token in the call's rendering is added, not what follows other replies."""
    template = (
        "{{ tools[0].function.name if tools }}{% for m in messages %}<|im_start|>{{ m.role }}{% if m.tool_calls %}"
        "{{ m.tool_calls[0].function | tojson }}<|im_end|>~{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    chat = chat_with(tokenizer, template)
    context = ChatContext(
        history=(HISTORY[0], Message("assistant", "", tool_calls=(ToolCall("1", "f", "{}"),))),
        tail=Tail.REPLY,
        last_token=chat._tokenizer.eos_token_id,
    )
    assert "~<|im_start|>toolr<|im_end|>" == chat._tokenizer.decode(chat.encode(context, [Message("tool", "r")], reply=False))


def test_names_reach_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """A template may show who speaks."""
    chat = chat_with(tokenizer, "{% for m in messages %}{{ m.name | default('?') }}: {{ m.content }}<|im_end|>{% endfor %}")
    assert "Ada: c<|im_end|>?: d<|im_end|>" == added(chat, Message("user", "c", name="Ada"), Message("user", "d"))


@pytest.mark.parametrize("role", ["user", "assistant", "tool", "system"])
def test_the_cost_of_a_message_does_not_grow_with_the_history(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """However long the history and whatever its roles, a few messages are rendered for each new one."""
    chat = chat_with(tokenizer, LOOP)
    sizes = []
    render = tokenizer.__class__.apply_chat_template

    def counted(self: PreTrainedTokenizerBase, conversation: list[dict[str, str]], **options: object) -> object:
        sizes.append(len(conversation))
        return render(self, conversation, **options)

    monkeypatch.setattr(tokenizer.__class__, "apply_chat_template", counted)
    added(chat, *[Message("user", "c")] * 3, history=(*HISTORY, *[Message(role, "x")] * 500))
    assert max(sizes) <= RECENT + 3
    assert len(sizes) <= 6
