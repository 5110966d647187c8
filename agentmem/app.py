"""The replica without its network: model, engine, stores and sessions, wired together."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import psutil
import torch
from prometheus_client import start_http_server

from agentmem import faults
from agentmem.api.server import ApiServer
from agentmem.chat import Chat
from agentmem.config import ServerSettings, Settings
from agentmem.engine.engine import Engine
from agentmem.engine.model import ModelHandle, load_model
from agentmem.engine.probe import verify_seam
from agentmem.engine.restore import Restorer
from agentmem.engine.runner import Runner
from agentmem.engine.scheduler import Limits
from agentmem.errors import ConfigError
from agentmem.memory.pool import KVPool
from agentmem.memory.shape import KVShape
from agentmem.sessions.generation import Generator
from agentmem.sessions.housekeeping import Housekeeper
from agentmem.sessions.inputs import ModelLimits
from agentmem.sessions.manager import SessionManager
from agentmem.sessions.observing import REPEAT_PROMPT, Recordings, Repetition
from agentmem.sessions.reports import FULL_CACHE
from agentmem.sessions.sealer import Sealer
from agentmem.sessions.sealing import Sealing, SealingRules
from agentmem.sessions.table import ModelIdentity, SessionTable
from agentmem.sessions.units import RECENT_TOKENS, UnitShape
from agentmem.stores.archive import Archive
from agentmem.stores.blocks import BlockFiles
from agentmem.stores.ledger import Ledger
from agentmem.stores.mapped import ArchiveFormat
from agentmem.stores.records import BlockHeader
from agentmem.stores.seal_files import SealFiles
from agentmem.stores.state import StateLock, read_secret
from agentmem.telemetry import Metrics, setup_logging
from agentmem_workers.make import make_executor
from agentmem_workers.port import Executor

DRAFT_SHARE = 8  # the smaller model's K and V may take this part of the budget, on top of it
T = TypeVar("T")
FORMAT_VERSION = 1
SECRET_BYTES = 32
JOB_SECONDS = 1.0  # for seal jobs to notice that their executor is closed
KV_SHARE = 0.5  # of the memory that is free once the model is loaded, when memory.kv_bytes is auto


@dataclass(slots=True)
class Core:
    """A running replica without its network. ``close`` ends it in order: new work, engine, stores."""

    manager: SessionManager
    engine: Engine
    ledger: Ledger
    archive: Archive
    executor: Executor
    model: ModelHandle
    housekeeper: Housekeeper
    lock: StateLock

    async def close(self, seconds: float) -> None:
        """Let replies end for up to ``seconds``, commit what they have, stop every thread."""
        await self.manager.drain(seconds)
        await self.housekeeper.stop()
        await self.manager.rest()
        await asyncio.to_thread(self.engine.stop)
        await asyncio.to_thread(self.executor.close)
        await self.manager.sealing.under_way.end(JOB_SECONDS)
        await asyncio.to_thread(self.ledger.close)
        self.lock.release()


def load_handle(settings: Settings, progress: Callable[[str, float], None] | None = None) -> ModelHandle:
    """Load the model that ``settings`` name. Errors as ``load_model``."""
    model = settings.model
    return _aside(
        lambda: load_model(
            model.id, dtype=model.dtype, device=model.device, cache_dir=model.cache_dir, threads=model.threads, progress=progress
        )
    )


def _aside(function: Callable[[], T]) -> T:
    """Run ``function`` on a thread that ends with it, so that torch's own threads end too and only the engine has some."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


@dataclass(frozen=True, slots=True)
class Stores:
    """What is on disk, and in host memory above it."""

    ledger: Ledger
    archive: Archive
    seal_files: SealFiles
    header: BlockHeader
    archive_format: ArchiveFormat

    @property
    def kv_dtype(self) -> str:
        """What block names depend on beside tokens and model: blocks of two formats never meet."""
        exact = self.archive_format is ArchiveFormat.NATIVE
        return self.header.dtype if exact else f"{self.header.dtype}/{self.archive_format.value}"


def open_stores(settings: Settings, model: ModelHandle) -> Stores:
    """Open the state directory; the caller holds its lock. Raises StorageFailed."""
    state, memory = settings.storage.state_dir, settings.memory
    header = BlockHeader(
        format_version=FORMAT_VERSION,
        fingerprint=model.fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        layers=model.layers,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        first_token=0,
        n_tokens=memory.block_tokens,
        rope=str(getattr(model.config, "rope_parameters", None)),
    )
    archive_format = ArchiveFormat(settings.storage.archive_format)
    ledger = Ledger(state / "meta.sqlite")
    files = BlockFiles(state / "blocks", quarantine=state / "quarantine")
    archive = Archive(
        files,
        ledger,
        header=header,
        host_bytes=int(memory.host_bytes),
        disk_bytes=int(settings.storage.disk_bytes),
        archive_format=archive_format,
    )
    return Stores(ledger, archive, SealFiles(files.root, header, archive_format, files=files), header, archive_format)


def build_engine(settings: Settings, model: ModelHandle, archive: Archive) -> Engine:
    """Return the engine, not yet started. Raises UnsupportedModel when the attention seam does not reproduce the model."""
    memory = settings.memory
    shape = KVShape(model.layers, model.kv_heads, model.head_dim, model.dtype, model.device)
    runner = Runner(model.model)
    _aside(lambda: verify_seam(model.model, lambda token_ids: runner.logits_of(token_ids, shape)))
    pool = KVPool(shape, kv_budget(settings, model.device), memory.block_tokens)
    limits = Limits(memory.max_running, memory.max_queue, memory.max_batch_tokens, max(memory.max_batch_tokens, 2048))
    threads = settings.model.threads or torch.get_num_threads()
    return Engine(runner, pool, Restorer(archive, memory.block_tokens), limits, threads, small=small_model(settings, model))


def small_model(settings: Settings, model: ModelHandle) -> tuple[Runner, KVPool] | None:
    """Return the model that drafts and its memory, if one is set. Errors as ``load_model``; ConfigError for another tokenizer."""
    if not settings.model.draft:
        return None
    small = load_handle(replace(settings, model=replace(settings.model, id=settings.model.draft)))
    if small.parts.tokenizer != model.parts.tokenizer or small.vocab_size > model.vocab_size:
        raise ConfigError(f"model.draft {settings.model.draft!r} has another tokenizer than {model.name!r}; allowed: a model with the same")
    shape = KVShape(small.layers, small.kv_heads, small.head_dim, small.dtype, small.device)
    runner = Runner(small.model)
    _aside(lambda: verify_seam(small.model, lambda token_ids: runner.logits_of(token_ids, shape)))
    return runner, KVPool(shape, kv_budget(settings, model.device) // DRAFT_SHARE, settings.memory.block_tokens)


def sealing_rules(stores: Stores, model: ModelHandle, chat: Chat, scale: float, max_context: int) -> SealingRules:
    """Return what the sealing of this model's sessions depends on. What a sliding window covers is never compressed."""
    window = getattr(model.config.get_text_config(), "sliding_window", None) or 0
    exact = stores.archive_format is ArchiveFormat.NATIVE
    return SealingRules(
        UnitShape(stores.header.n_tokens, max(RECENT_TOKENS, window)),
        scale,
        Repetition(tuple(chat.encode_text(REPEAT_PROMPT)), max_context),
        FULL_CACHE if exact else f"{stores.archive_format.value} archive",
    )


def build_core(settings: Settings, model: ModelHandle) -> Core:
    """Wire a replica around a loaded model and start its engine. Call on the event loop that will use it.

    When it raises, the state directory is free for another.
    """
    with contextlib.ExitStack() as undo:
        lock = StateLock(settings.storage.state_dir)
        undo.callback(lock.release)
        stores = open_stores(settings, model)
        undo.callback(stores.ledger.close)
        core = _wire(settings, model, stores, build_engine(settings, model, stores.archive), lock)
        undo.pop_all()
    core.engine.start()
    core.housekeeper.start()
    return core


def _wire(settings: Settings, model: ModelHandle, stores: Stores, engine: Engine, lock: StateLock) -> Core:
    state = settings.storage.state_dir
    secret = read_secret(state)
    executor = make_executor(settings.workers, stores.seal_files, stores.header, stores.archive_format, state)
    identity = ModelIdentity(model.name, model.fingerprint, model.parts.tokenizer, stores.kv_dtype)
    exact_bytes = int(settings.memory.session_share * engine.pool.budget_bytes)
    table = SessionTable(stores.ledger, engine, identity, secret, settings.memory.block_tokens, exact_bytes=exact_bytes)
    sealer = Sealer(engine, stores.archive, stores.ledger, executor, keep_blocks=settings.storage.kv_archive)
    max_context = min(settings.model.max_context or model.max_context, model.max_context)
    chat = Chat(model.tokenizer, model.eos_token_ids, model.vocab_size)
    rules = sealing_rules(stores, model, chat, engine.runner.heads.scale, max_context)
    sealing = Sealing(sealer, stores.seal_files, Recordings(state / "queries"), rules)
    table.on_live, table.on_loaded = sealing.attach, lambda session: sealing.expect(session, 0.0)
    generator = Generator(engine, chat, sealer, ModelLimits(model.vocab_size, max_context), settings.server.resume_seconds)
    manager = SessionManager(table, generator, sealing, stores.archive)
    housekeeper = Housekeeper(manager, settings.storage)
    return Core(manager, engine, stores.ledger, stores.archive, executor, model, housekeeper, lock)


def kv_budget(settings: Settings, device: torch.device) -> int:
    """Return the bytes that K and V may take on the device."""
    if settings.memory.kv_bytes != "auto":
        return int(settings.memory.kv_bytes)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free * KV_SHARE)


async def run_server(settings: Settings, model: ModelHandle, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM, SIGINT or AdminService.Drain; ``on_ready`` gets the address. A second signal ends at once."""
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[float | None] = loop.create_future()

    signals = itertools.count(1)

    def request_drain(seconds: float | None = None) -> None:
        if not stopping.done():
            stopping.set_result(seconds)

    def on_signal() -> None:
        if next(signals) > 1:
            os._exit(130)
        request_drain()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, on_signal)
    core = build_core(settings, model)
    metrics = Metrics()
    metrics.watch(core.manager.stats)
    core.manager.generator.on_reply = metrics.reply
    server = ApiServer(core.manager, settings.server, metrics=metrics, request_drain=request_drain)
    grace = settings.server.drain_seconds
    try:
        await server.start()
        with serve_metrics(metrics, settings.server):
            on_ready(server.address)
            asked = await stopping
        grace = settings.server.drain_seconds if asked is None else asked
    finally:
        await server.drain(grace)
        await core.close(grace)


@contextlib.contextmanager
def serve_metrics(metrics: Metrics, settings: ServerSettings) -> Iterator[None]:
    """Serve /metrics on ``server.metrics_port`` while the context lasts; port 0 serves nothing. Raises ConfigError for a taken port."""
    if not settings.metrics_port:
        yield
        return
    try:
        http, thread = start_http_server(settings.metrics_port, addr=settings.host, registry=metrics.registry)
    except OSError as error:
        raise ConfigError(f"server.metrics_port {settings.metrics_port} of {settings.host} cannot be bound: {error}") from error
    try:
        yield
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def serve(settings: Settings, on_ready: Callable[[str], None] = print, progress: Callable[[str, float], None] | None = None) -> None:
    """Load the model and serve until told to stop; ``progress`` hears what loading does. Raises AgentMemError when it cannot start."""
    faults.arm_from_env()
    setup_logging(settings.log.level, settings.log.format, prompt_text=settings.log.prompt_text)
    model = load_handle(settings, progress)
    asyncio.run(run_server(settings, model, on_ready))
