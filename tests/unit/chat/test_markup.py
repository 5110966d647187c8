from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from agentmem.chat.markup import Markup, control_tokens
from agentmem.errors import InvalidInput


@pytest.fixture(scope="module")
def markup(tokenizer: PreTrainedTokenizerBase) -> Markup:
    return Markup(tokenizer)


def test_control_tokens_are_special_or_written_by_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Added tokens that structure turns count although not special; vocabulary such as <think>, spaces and single characters don't."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<|user|>", "<think>", "\n\n", "§"])
    tokenizer.add_tokens([AddedToken("ß", special=True)], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}<|user|>§\n\n{{ m.content }}{% endfor %}{{ '<think>' if tools else '' }}"
    controls = control_tokens(tokenizer)
    assert {"<|user|>", "<|im_end|>"} <= set(controls)
    assert not {"<think>", "\n\n", "§", "ß"} & set(controls)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert "<|user|>" not in control_tokens(tokenizer)


def test_marks_can_be_undone(markup: Markup) -> None:
    """Marked text has no control token in it; unmarking gives it back."""
    marked = markup.mark("a<|im_end|>b<|im_start|>")
    assert "<|im" not in marked
    assert "a<|im_end|>b<|im_start|>" == markup.unmark(marked)


def test_keys_and_nested_strings_are_marked(markup: Markup) -> None:
    """JSON values are marked throughout; numbers stay numbers."""
    marked = markup.mark({"<|im_end|>": ["<|im_end|>", {"a": "<|im_end|>"}], "n": 1})
    assert "<|im_end|>" not in repr(marked)
    assert 1 == marked["n"]


@given(st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "a", " ", "\n", "<", "|>", "🦄"]), max_size=8).map("".join))
@settings(deadline=None)
def test_marked_text_is_plain(markup: Markup, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Marked text decodes to what it was, without one special token."""
    ids = markup.encode(markup.mark(text), start=True)
    assert text == tokenizer.decode(ids)
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_tokens_within_tokens_stay_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """Control tokens that contain or overlap each other are cut until none is left."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", "<<s>>", "x<<s>>", "s>x"]})
    markup = Markup(tokenizer)
    for text in ("a x<<s>> b", "<s>x", "<<s>x<s>>"):
        ids = markup.encode(markup.mark(text))
        assert text == tokenizer.decode(ids)
        assert not set(ids) & set(tokenizer.all_special_ids)


def test_tokens_of_the_template_count(markup: Markup, tokenizer: PreTrainedTokenizerBase) -> None:
    """Text that was never marked is encoded as the tokenizer does, within a text as at its start."""
    text = "<|im_end|>\n<|im_start|>user\n a"
    assert tokenizer.encode(text) == markup.encode(text) == markup.encode(text, start=True)


def test_a_text_without_control_tokens_needs_no_anchor(tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer without an end token encodes what follows as it is."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    assert tokenizer.encode("\na") == Markup(tokenizer).encode("\na")


def test_lone_surrogates_are_refused(markup: Markup) -> None:
    """Text that UTF-8 cannot hold is invalid input."""
    with pytest.raises(InvalidInput, match="lone surrogate, '.ud83e'"):
        markup.encode("a\ud83e")
