"""A tool loop that can be run twice with the same tokens, and a tiny model whose contexts are long enough for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from pathlib import Path

from support.conversation import tokens_and_replies
from support.families import llama
from support.replica import EOS, VOCAB, byte_tokenizer

from agentmem.events import ConverseEvent, FinishEvent, TokenEvent
from agentmem.output import OutputSpec, ToolChoice, ToolMode
from agentmem.types import SamplingParams, ToolSpec
from agentmem_client import AsyncSession
from agentmem_client.loop import ToolLoop

CONTEXT = 2048
SCHEMA = {
    "type": "object",
    "properties": {"path": {"enum": ["a.py", "b.py"]}, "line": {"enum": [1, 2, 3]}},
    "required": ["path", "line"],
    "additionalProperties": False,
}
READ = ToolSpec("read", "Reads a line.", json.dumps(SCHEMA))
CALLS = OutputSpec(ToolChoice(ToolMode.NAMED, "read"))
SAMPLING = SamplingParams(max_tokens=200, temperature=1.0, seed=11)
RESULTS = tuple(f"result {turn}: what the tool has found, line after line\n" * 4 for turn in range(4))


def save_model(directory: Path) -> Path:
    """Write a tiny byte-level model into ``directory``, as ``model.id`` can name it; return the directory."""
    shape = {"num_hidden_layers": 2, "max_position_embeddings": CONTEXT, "bos_token_id": EOS - 1, "eos_token_id": EOS}
    llama(vocab_size=VOCAB, **shape).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


async def in_pieces(text: str, size: int = 40) -> AsyncIterator[str]:
    """Yield ``text`` in pieces."""
    for start in range(0, len(text), size):
        yield text[start : start + size]


async def drain(events: AsyncIterable[ConverseEvent]) -> list[int]:
    """Return the tokens of a reply, which must have come once and in order, and to its end; none where there was no reply."""
    tokens: list[int] = []
    finishes = 0
    async for event in events:
        if isinstance(event, TokenEvent):
            assert len(tokens) == event.index
            tokens += event.token_ids
        if isinstance(event, FinishEvent):
            finishes += 1
            assert event.durable
    assert int(bool(tokens)) == finishes
    return tokens


async def run(
    session: AsyncSession, results: Sequence[str] = RESULTS, pieces: Callable[[str], AsyncIterable[str]] = in_pieces
) -> list[list[int]]:
    """Say something and send results for as long as there are some; return the tokens of every reply."""
    async with session.converse(SAMPLING, output=CALLS) as loop:
        replies = [await drain(loop.say("Fix the bug."))]
        for text in results:
            (call,) = loop.calls
            assert "read" == call.name
            replies.append(await drain(loop.result(call, pieces(text))))
    return replies


async def one_turn(loop: ToolLoop, text: str = "next") -> list[int]:
    """Say something and return the reply, which need not be a call."""
    return await drain(loop.say(text, sampling=SamplingParams(max_tokens=8, ignore_eos=True), output=OutputSpec()))


async def ledger(session: AsyncSession) -> tuple[list[int], list[range], list[tuple[tuple[str, str], ...]]]:
    """Return all tokens of a session, where the replies are among them, and the messages."""
    _, turns = await session.inspect()
    messages = [tuple((message.role, message.content) for message in info.turn.messages) for info in turns]
    return *await tokens_and_replies(session), messages
