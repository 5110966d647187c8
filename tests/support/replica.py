"""A real replica without its network around a tiny random Llama, and an independent reference of what it must answer."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support.families import llama
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agentmem.app import Core, build_core
from agentmem.config import Settings, load_settings
from agentmem.engine.model import ModelHandle, load_model
from agentmem.events import FinishEvent, GenerationEvent, StartEvent, TokenEvent
from agentmem.output import FREE, OutputSpec
from agentmem.sessions.session import Session
from agentmem.types import Fidelity, Message, SamplingParams, SessionFormat, TenantId, TurnInput
from agentmem.views import SessionInfo, SessionSpec

TENANT = TenantId("acme")
OTHER = TenantId("globex")
BLOCK = 16
MAX_CONTEXT = 768
START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one id for each byte and ChatML's two control tokens: any text, no files."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=START, eos_token=END, pad_token=END)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def encode(text: str) -> list[int]:
    """Return the ids of ``text``, control tokens read as such."""
    return list(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


EOS = encode(END)[0]
VOCAB = EOS + 1


@functools.cache
def reference_model() -> PreTrainedModel:
    """Return the model as transformers runs it; ``tiny_model`` has the same weights."""
    return llama(vocab_size=VOCAB, num_hidden_layers=2, max_position_embeddings=MAX_CONTEXT, bos_token_id=EOS - 1, eos_token_id=EOS)


def save_replica_model(directory: Path) -> Path:
    """Write model and tokenizer into ``directory``, as ``model.id`` can name it; return the directory."""
    reference_model().save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


@functools.cache
def tiny_model() -> ModelHandle:
    """Return the model as the server loads it: once, for all tests."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        path = save_replica_model(Path(directory) / "tiny")
        return load_model(str(path), dtype="fp32", device="cpu", cache_dir=Path(directory) / "cache")


@functools.cache
def greedy(ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return what transformers generates greedily after ``ids``: up to ``count`` tokens, the end token last if it comes."""
    model, past, step, found = reference_model(), None, torch.tensor([ids]), []
    for _ in range(min(count, MAX_CONTEXT - len(ids))):
        output = model(input_ids=step, past_key_values=past, use_cache=True)
        past, token = output.past_key_values, int(output.logits[0, -1].argmax())
        found.append(token)
        if token == EOS:
            break
        step = torch.tensor([[token]])
    return tuple(found)


def user(text: str) -> TurnInput:
    """Return one user message as input."""
    return TurnInput(messages=(Message("user", text),))


@dataclass(frozen=True, slots=True)
class Answer:
    """The events of one reply, taken apart."""

    events: tuple[GenerationEvent, ...]

    @property
    def start(self) -> StartEvent:
        return next(event for event in self.events if isinstance(event, StartEvent))

    @property
    def finish(self) -> FinishEvent:
        return next(event for event in self.events if isinstance(event, FinishEvent))

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token for event in self.events if isinstance(event, TokenEvent) for token in event.token_ids)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TokenEvent))


class Replica:
    """A core on a state directory, with short forms of the manager's calls for one tenant."""

    def __init__(self, state: Path, *, prefetches: bool = False, model: ModelHandle | None = None, **overrides: object) -> None:
        """``prefetches`` False: memory comes back when a call needs it, so that tests can tell where from; ``model``: the tiny one."""
        self.state = state
        self.prefetches = prefetches
        self.overrides = overrides
        self.open(model)

    def open(self, model: ModelHandle | None = None) -> None:
        """Build the core; it must be closed or new."""
        self.core: Core = build_core(replica_settings(self.state, **self.overrides), model or tiny_model())
        self.manager = self.core.manager
        if not self.prefetches:
            self.manager.sealing.rules = dataclasses.replace(self.manager.sealing.rules, prefetch=False)

    async def restart(self, model: ModelHandle | None = None) -> None:
        """Close the core and build another one on the same state."""
        await self.core.close(5.0)
        self.open(model)

    async def create(self, name: str = "a", *, system: str = "", tenant: TenantId = TENANT, **fields: Any) -> SessionInfo:
        return await self.manager.create(tenant, SessionSpec(session_id=name, system=system, **fields))

    async def raw(self, name: str = "r", tenant: TenantId = TENANT) -> SessionInfo:
        return await self.create(name, tenant=tenant, format=SessionFormat.RAW)

    def events(
        self,
        name: str,
        given: TurnInput,
        max_tokens: int = 8,
        *,
        tenant: TenantId = TENANT,
        request_id: str | None = None,
        resume_after: int = 0,
        deadline: float | None = None,
        fidelity: Fidelity | None = None,
        output: OutputSpec = FREE,
        **sampling: Any,
    ) -> AsyncIterator[GenerationEvent]:
        """Start Generate; nothing happens before the first event is asked for."""
        return self.manager.generate(
            tenant,
            name,
            given,
            SamplingParams(max_tokens=max_tokens, **sampling),
            request_id=request_id,
            resume_after=resume_after,
            deadline=deadline,
            fidelity=fidelity,
            output=output,
        )

    async def ask(self, name: str, given: TurnInput | str, max_tokens: int = 8, **options: Any) -> Answer:
        """Generate to the end."""
        given = user(given) if isinstance(given, str) else given
        return Answer(tuple([event async for event in self.events(name, given, max_tokens, **options)]))

    def session(self, name: str = "a", tenant: TenantId = TENANT) -> Session:
        """Return the live session."""
        session = self.manager.table.live(tenant, name)
        assert session is not None
        return session

    def tokens(self, name: str = "a", tenant: TenantId = TENANT) -> list[int]:
        return list(self.session(name, tenant).chain.tokens)

    async def settle(self, name: str = "a", tenant: TenantId = TENANT) -> Session:
        """Wait until all background work on a session is done; return the session."""
        session = self.session(name, tenant)
        await self.manager.sealing.settle(session)
        return session

    async def spill(self) -> int:
        """Take every idle session off the device."""
        return await self.core.engine.call(self.core.engine.pool.spill_idle)

    def block_file(self, name: str, index: int, tenant: TenantId = TENANT) -> Path:
        """Return the file of a session's block."""
        digest = self.session(name, tenant).chain.hashes[index].hex()
        return self.state / "blocks" / digest[:2] / f"{digest}.safetensors"

    async def check(self) -> None:
        """Fail unless pool, archive and ledger are sound, and memory says what the ledger says. Background work pauses meanwhile."""
        async with AsyncExitStack() as at_rest:
            for session in self.manager.table:
                if session.background is not None:
                    await at_rest.enter_async_context(session.background.resting())
            await self.core.engine.call(self.core.engine.pool.check_integrity)
            self.core.archive.check_integrity()
            assert [] == self.core.ledger.integrity()
            for session in self.manager.table:
                self._check_mirror(session)

    def _check_mirror(self, session: Session) -> None:
        record = session.record
        assert session.chain.tokens == [token for turn in session.turns for token in turn.token_ids]
        assert session.branch is None or session.branch.length <= len(session.chain)
        assert session.num_saved_blocks <= len(session.chain.hashes)
        if session.unsaved or session.writer:
            return
        stored = self.core.ledger.get_session(record.tenant, record.id)
        same = {"updated_at": 0.0, "expires_at": 0.0}  # each side reads its clock
        assert dataclasses.replace(record, **same) == dataclasses.replace(stored, **same)
        assert session.turns == self.core.ledger.turns(record.tenant, record.id)


def replica_settings(state: Path, **overrides: object) -> Settings:
    """Return settings for tests: small blocks, small steps, a reaper that is called by hand."""
    base = {
        "storage.state_dir": str(state),
        "storage.reap_seconds": 3600,
        "memory.kv_bytes": "16MiB",
        "memory.block_tokens": BLOCK,
        "memory.max_batch_tokens": 64,
    }
    return load_settings(None, {}, base | {key.replace("__", "."): value for key, value in overrides.items()})


@asynccontextmanager
async def running(
    state: Path, *, prefetches: bool = False, model: ModelHandle | None = None, **overrides: object
) -> AsyncIterator[Replica]:
    """Run a replica; at the end its books are checked."""
    replica = Replica(state, prefetches=prefetches, model=model, **overrides)
    try:
        yield replica
        await replica.check()
    finally:
        await replica.core.close(5.0)


async def until(condition: Callable[[], bool]) -> None:
    """Return as soon as ``condition`` holds; the test's timeout is the limit."""
    for _ in itertools.count():
        if condition():
            return
        await asyncio.sleep(0.001)


async def chunks_of(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """Yield ``data`` in pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def gather_bytes(chunks: AsyncIterator[bytes]) -> bytes:
    """Join chunks."""
    return b"".join([chunk async for chunk in chunks])


def rendered(messages: Iterable[tuple[str, str]]) -> str:
    """Return ChatML for (role, content) pairs."""
    return "".join(f"{START}{role}\n{content}{END}\n" for role, content in messages)


PROMPT = f"{START}assistant\n"
