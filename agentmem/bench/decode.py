"""``bench decode``: one session beside Hugging Face's ``generate`` on the same prompts, same dtype, same threads, same run."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from agentmem.bench.machine import this_machine
from agentmem.bench.measure import TokenTimes, greedy, timed_reply
from agentmem.bench.options import Options, Say
from agentmem.bench.reference import Reference
from agentmem.bench.report import Cell, Column, Report
from agentmem.bench.server import ServerProcess, connected
from agentmem.types import Policy, SessionFormat, TurnInput
from agentmem_client import AsyncAgentMem

COLUMNS = (
    Column("context", "context"),
    Column("prefill", "prefill, tokens/s", ",.0f"),
    Column("hf_prefill", "HF", ",.0f"),
    Column("prefill_speedup", "times", ".2f"),
    Column("ms_per_token", "ms a token", ".1f"),
    Column("hf_ms_per_token", "HF", ".1f"),
    Column("decode_speedup", "times", ".2f"),
)
CAPTION = (
    "A prompt never seen before and {reply_tokens} greedy tokens. prefill: its tokens over the time to the first token; ms a token: mean of"
    " the tokens after it. The service is timed at its client, over gRPC; HF is generate with a full cache and its default attention,"
    " in this process, while the server is idle. Both in turn, on the same prompts; medians."
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of context, one cell each, and of reply."""

    contexts: tuple[int, ...] = (512, 2048, 6000)
    reply_tokens: int = 32


Pairs = dict[int, list[tuple[TokenTimes, TokenTimes]]]  # context -> (ours, HF's)


async def run(options: Options, say: Say, sizes: Sizes | None = None) -> Report:
    """Measure cell by cell, the service and HF in turn. Raises AgentMemError when the service fails."""
    sizes = sizes or Sizes()
    machine = this_machine(options)
    say("loading the model for HF generate")
    reference = Reference.load(options)
    text = reference.text()
    pairs: Pairs = {context: [] for context in sizes.contexts}
    with tempfile.TemporaryDirectory(prefix="agentmem-bench-") as folder:
        async with ServerProcess(options.settings(), Path(folder)) as server, connected(server) as client:
            for number in range(-1, options.repeat):  # number -1 warms up
                for context in sizes.contexts if number >= 0 else sizes.contexts[:1]:
                    say(f"{context} tokens of context, measurement {max(0, number) + 1} of {options.repeat}")
                    pair = await _pair(client, reference, text.token_ids(context), sizes.reply_tokens, ours_first=number % 2 == 0)
                    if number >= 0:
                        pairs[context].append(pair)
    rows = [_row(context, measured) for context, measured in pairs.items()]
    return Report(
        name="decode",
        title="Prefill and decode of one session, beside HF generate",
        caption=CAPTION.format(**asdict(sizes)),
        machine=machine,
        columns=COLUMNS,
        rows=rows,
        measured=_worst(rows),
        settings=asdict(options) | asdict(sizes) | {"cache_dir": str(options.cache_dir)},
    )


async def _pair(
    client: AsyncAgentMem, reference: Reference, prompt: list[int], reply_tokens: int, *, ours_first: bool
) -> tuple[TokenTimes, TokenTimes]:
    """Time both on ``prompt``; who begins changes from one measurement to the next."""
    if ours_first:
        ours = await _ours(client, prompt, reply_tokens)
        return ours, reference.generate(prompt, reply_tokens)
    theirs = reference.generate(prompt, reply_tokens)
    return await _ours(client, prompt, reply_tokens), theirs


async def _ours(client: AsyncAgentMem, prompt: list[int], reply_tokens: int) -> TokenTimes:
    async with client.session(format=SessionFormat.RAW, policy=Policy(drafter="none"), delete_on_exit=True) as session:
        reply = await timed_reply(session, TurnInput(token_ids=tuple(prompt)), greedy(reply_tokens))
    return reply.tokens


def _row(context: int, measured: list[tuple[TokenTimes, TokenTimes]]) -> dict[str, Cell]:
    first, hf_first = (statistics.median(pair[who].first_token_s for pair in measured) for who in (0, 1))
    token, hf_token = (1000 * statistics.median(pair[who].seconds_per_token for pair in measured) for who in (0, 1))
    return {
        "context": context,
        "prefill": context / first,
        "hf_prefill": context / hf_first,
        "prefill_speedup": hf_first / first,
        "ms_per_token": token,
        "hf_ms_per_token": hf_token,
        "decode_speedup": hf_token / token,
    }


def _worst(rows: list[dict[str, Cell]]) -> Mapping[str, float]:
    return {
        "slowest_prefill": min(float(row["prefill_speedup"]) for row in rows),
        "slowest_decode": min(float(row["decode_speedup"]) for row in rows),
    }
