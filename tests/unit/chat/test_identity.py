from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from support.chat_templates import with_template
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from agentmem.chat import template_hash, tokenizer_hash

SCRIPT = """
import sys
from transformers import AutoTokenizer
from agentmem.chat import template_hash, tokenizer_hash
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print(tokenizer_hash(tokenizer), template_hash(tokenizer))
"""


def test_hashes_are_stable_over_processes(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Another process that loads the saved tokenizer computes the same hashes."""
    tokenizer.save_pretrained(tmp_path)
    shown = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert [tokenizer_hash(tokenizer), template_hash(tokenizer)] == shown.split()


def test_hashes_do_not_depend_on_earlier_calls(tokenizer: PreTrainedTokenizerBase) -> None:
    """Padding and truncating a text leaves state in the tokenizer that doesn't count."""
    used = copy.deepcopy(tokenizer)
    used(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(tokenizer) == tokenizer_hash(used)


def test_what_ids_mean_changes_the_tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> None:
    """One more token, or another end token, is another tokenizer."""
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<new>"])
    other_end = copy.deepcopy(tokenizer)
    other_end.eos_token = "<|endoftext|>"
    assert 3 == len({tokenizer_hash(tokenizer), tokenizer_hash(more), tokenizer_hash(other_end)})


def test_the_template_hash_is_of_its_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """Another template, or another set of named templates, has another hash; none has an empty one."""
    named = copy.copy(tokenizer)
    named.chat_template = {"default": tokenizer.chat_template, "tool_use": "x"}
    without = copy.copy(tokenizer)
    without.chat_template = None
    assert 3 == len({template_hash(tokenizer), template_hash(named), template_hash(with_template(tokenizer, "chatml"))})
    assert "" == template_hash(without)


def test_slow_tokenizers_hash_their_vocabulary() -> None:
    """Without a Rust backend the vocabulary and the added tokens count."""

    def slow(vocab: dict[str, int], end: str) -> SimpleNamespace:
        added = {9: AddedToken(end, special=True)}
        return SimpleNamespace(get_vocab=lambda: vocab, added_tokens_decoder=added, special_tokens_map={"eos_token": end})

    hashes = [
        tokenizer_hash(slow(vocab, end))
        for vocab, end in [({"a": 1, "b": 2}, "e"), ({"b": 2, "a": 1}, "e"), ({"a": 1}, "e"), ({"a": 1}, "f")]
    ]
    assert hashes[0] == hashes[1]
    assert 3 == len(set(hashes))
