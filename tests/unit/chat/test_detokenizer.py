from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from agentmem.chat import Detokenizer

relaxed = settings(max_examples=60, deadline=None)


def pushed(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(index) for index in ids), detokenizer.finish()]


@given(text=st.text(max_size=30))
@relaxed
def test_pieces_join_to_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """The pieces of an encoded text join to what decode gives for all of it."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "".join(pushed(tokenizer, ids))


@given(ids=st.lists(st.integers(0, 49151) | st.integers(0, 300), max_size=25))
@relaxed
def test_any_ids_join_to_their_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> None:
    """That holds for arbitrary ids too: special tokens, and bytes that are no characters."""
    assert tokenizer.decode(ids, skip_special_tokens=True) == "".join(pushed(tokenizer, ids))


def test_half_a_character_is_held_back(tokenizer: PreTrainedTokenizerBase) -> None:
    """An emoji over several tokens appears with its last token, whole."""
    ids = tokenizer.encode("a🦄b", add_special_tokens=False)
    assert len(ids) > 3
    assert ["a", *[""] * (len(ids) - 3), "🦄", "b", ""] == pushed(tokenizer, ids)


def test_an_unfinished_character_shows_at_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Bytes that never became a character are shown as U+FFFD when the reply ends, and nothing comes after."""
    ids = tokenizer.encode("a🦄", add_special_tokens=False)[:-1]
    detokenizer = Detokenizer(tokenizer)
    assert "a" == "".join(map(detokenizer.push, ids))
    assert tokenizer.decode(ids) == "a" + detokenizer.finish()
    assert "" == detokenizer.finish()


def test_special_tokens_are_skipped(tokenizer: PreTrainedTokenizerBase) -> None:
    """Special tokens have no text."""
    assert ["a", "", "b", ""] == pushed(tokenizer, tokenizer.encode("a<|im_end|>b"))


def test_special_tokens_may_be_shown(tokenizer: PreTrainedTokenizerBase) -> None:
    """Those that are named have the text that they are given; what comes before them is shown first, whole or not."""
    detokenizer = Detokenizer(tokenizer, {2: "[CALL]"})
    ids = [*tokenizer.encode("a🦄", add_special_tokens=False)[:-1], 2, *tokenizer.encode("b<|im_start|>", add_special_tokens=False)]
    assert tokenizer.decode(ids[:-3]) + "[CALL]b" == "".join(map(detokenizer.push, ids)) + detokenizer.finish()


@pytest.fixture(scope="module")
def sentencepiece() -> PreTrainedTokenizerFast:
    """Return a tokenizer that decodes like Llama 2's: spaces before words, none at the start, bytes as a last resort."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁hello", "▁world", "▁", "!"]
    core = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core)


@given(parts=st.lists(st.sampled_from([*"aé🦄", "▁hello", "▁world", "▁", "!"]), max_size=10))
@relaxed
def test_sentencepiece_texts_join(sentencepiece: PreTrainedTokenizerFast, parts: list[str]) -> None:
    """Spaces between words and characters made of byte tokens come out as in the whole text."""
    vocab = sentencepiece.get_vocab()
    ids = [index for part in parts for index in ([vocab[part]] if part in vocab else [vocab[f"<0x{byte:02X}>"] for byte in part.encode()])]
    assert sentencepiece.decode(ids) == "".join(pushed(sentencepiece, ids))


def test_tokenizers_without_a_rust_backend_work(tokenizer: PreTrainedTokenizerBase) -> None:
    """A slow tokenizer is asked through its own decode."""
    slow = SimpleNamespace(decode=tokenizer.decode)
    ids = tokenizer.encode("a🦄b")
    assert pushed(tokenizer, ids) == pushed(slow, ids)  # type: ignore[arg-type]
