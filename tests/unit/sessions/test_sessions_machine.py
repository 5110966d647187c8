"""Random walks over sessions against a model in plain Python: turns, token ids and greedy replies, whatever happened to K and V."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.replica import END, EOS, PROMPT, TENANT, Replica, encode, greedy, rendered, user

from agentmem.errors import AlreadyExists
from agentmem.types import Fidelity, Message, TurnInput
from agentmem.views import SessionPatch

NAMES = st.sampled_from("abc")
PICK = st.integers(0, 7)
TEXT = st.text("xyz ", min_size=1, max_size=24)
SYSTEMS = st.sampled_from(["", "s" * 20, "s" * 45])


@dataclass(frozen=True)
class Said:
    """One turn as it must be."""

    ids: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()
    replied: bool = False
    open: bool = False


def closing(turns: list[Said]) -> str:
    """Return what ends a reply before the next message."""
    if not turns[-1].replied:
        return ""
    return "\n" if turns[-1].ids[-1] == EOS else f"{END}\n"


class SessionsMachine(RuleBasedStateMachine):
    """``sessions`` is what must be there."""

    @initialize()
    def start(self) -> None:
        """Open a replica with one session that has something to lose."""
        self.runner = asyncio.Runner()
        self.state = Path(tempfile.mkdtemp())
        self.replica = self.run(self._open())
        self.sessions: dict[str, list[Said]] = {}
        self.count = 0
        self.create("a", "s" * 45)
        self.generate(0, "x" * 20, 6)

    async def _open(self) -> Replica:
        return Replica(self.state)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run ``work`` on the machine's loop."""
        return self.runner.run(work)

    def pick(self, number: int) -> str:
        """Return one of the sessions there are."""
        return sorted(self.sessions)[number % len(self.sessions)]

    def unique(self, text: str) -> str:
        """Return ``text`` so that no two messages are equal."""
        self.count += 1
        return f"{self.count} {text}"

    @rule(name=NAMES, system=SYSTEMS)
    def create(self, name: str, system: str) -> None:
        """Create a session: it holds its system prompt; a name is given once."""
        if name in self.sessions:
            with pytest.raises(AlreadyExists):
                self.run(self.replica.create(name))
            return
        self.run(self.replica.create(name, system=system))
        self.sessions[name] = [Said(tuple(encode(rendered([("system", system)]))) if system else ())]

    def say(self, turns: list[Said], messages: tuple[Message, ...], max_tokens: int = 0) -> list[Said]:
        """Return ``turns`` with ``messages`` added and, with ``max_tokens``, a reply."""
        text = closing(turns) + rendered([(message.role, message.content) for message in messages]) + (PROMPT if max_tokens else "")
        *before, last = turns
        if not last.open:
            before, last = turns, Said()
        ids = last.ids + tuple(encode(text))
        reply = greedy(tuple(token for turn in before for token in turn.ids) + ids, max_tokens) if max_tokens else ()
        return [*before, Said(ids + reply, last.messages + messages, bool(reply), open=not reply)]

    @precondition(lambda self: self.sessions)
    @rule(number=PICK, text=TEXT)
    def append(self, number: int, text: str) -> None:
        """Append: messages without a reply form an open turn."""
        name, given = self.pick(number), user(self.unique(text))
        self.run(self.replica.manager.append(TENANT, name, given, request_id=None))
        self.sessions[name] = self.say(self.sessions[name], given.messages)

    @precondition(lambda self: self.sessions)
    @rule(number=PICK, text=TEXT, max_tokens=st.integers(1, 6))
    def generate(self, number: int, text: str, max_tokens: int) -> None:
        """Generate: the reply is the one that transformers gives for the whole history."""
        name = self.pick(number)
        given = user(self.unique(text))
        self._generate(name, given, self.sessions[name], given.messages, max_tokens)

    def _generate(self, name: str, given: TurnInput, turns: list[Said], messages: tuple[Message, ...], max_tokens: int) -> None:
        expected = self.say(turns, messages, max_tokens)
        answer = self.run(self.replica.ask(name, given, max_tokens))
        reply = answer.token_ids
        assert expected[-1].ids[-len(reply) :] == reply
        assert sum(len(turn.ids) for turn in expected) - len(reply) == answer.start.context_tokens
        expected[-1] = replace(expected[-1], messages=(*expected[-1].messages, answer.finish.message))
        self.sessions[answer.start.session_id] = expected

    @precondition(lambda self: self.sessions)
    @rule(number=PICK, text=TEXT, max_tokens=st.integers(1, 40), fidelity=st.sampled_from([Fidelity.RECALL, Fidelity.COMPACT]))
    def approximate(self, number: int, text: str, max_tokens: int, fidelity: Fidelity) -> None:
        """Generate under an approximate view: what it says is its own affair, that it stays in the history is not."""
        name, given = self.pick(number), user(self.unique(text))
        *before, last = self.say(self.sessions[name], given.messages, 1)
        answer = self.run(self.replica.ask(name, given, max_tokens, fidelity=fidelity))
        assert fidelity == answer.finish.fidelity
        said = replace(last, ids=last.ids[:-1] + answer.token_ids, messages=(*last.messages, answer.finish.message))
        self.sessions[name] = [*before, said]

    @precondition(lambda self: self.sessions)
    @rule(number=PICK)
    def settle(self, number: int) -> None:
        """Let background work reach its end: nothing approximate is left."""
        name = self.pick(number)
        self.run(self.replica.manager.get(TENANT, name))
        assert self.run(self.replica.settle(name)).info().exact

    @precondition(lambda self: self.sessions)
    @rule(number=PICK, keep=PICK, text=TEXT)
    def resend(self, number: int, keep: int, text: str) -> None:
        """Resend a history: it appends, or goes on in a fork from its last whole equal turn."""
        name = self.pick(number)
        turns = self.sessions[name]
        known = [message for turn in turns for message in turn.messages]
        keep = min(keep, len(known))
        sent = (*known[:keep], Message("user", self.unique(text)))
        start = keep
        if keep < len(known):
            while sum(len(turn.messages) for turn in turns) > keep:
                turns = turns[:-1]
            start = sum(len(turn.messages) for turn in turns)
        self._generate(name, TurnInput(messages=sent, full_history=True), turns, sent[start:], 4)

    @precondition(lambda self: self.sessions)
    @rule(number=PICK, turn=PICK, name=NAMES)
    def fork(self, number: int, turn: int, name: str) -> None:
        """Fork: the new session has the turns up to the one named."""
        source = self.pick(number)
        turn %= len(self.sessions[source])
        work = self.replica.manager.fork(TENANT, source, at_turn=turn, new_id=name, labels=None)
        if name in self.sessions:
            with pytest.raises(AlreadyExists):
                self.run(work)
            return
        self.run(work)
        self.sessions[name] = self.sessions[source][: turn + 1]

    @precondition(lambda self: self.sessions)
    @rule(number=PICK, turn=PICK)
    def rollback(self, number: int, turn: int) -> None:
        """Roll back: the later turns are gone."""
        name = self.pick(number)
        turn %= len(self.sessions[name])
        self.run(self.replica.manager.rollback(TENANT, name, to_turn=turn))
        self.sessions[name] = self.sessions[name][: turn + 1]

    @precondition(lambda self: self.sessions)
    @rule(number=PICK)
    def end_turn(self, number: int) -> None:
        """End a turn: it takes no more messages."""
        name = self.pick(number)
        self.run(self.replica.manager.end_turn(TENANT, name, waiting_on_tool=False, eta_seconds=0.0))
        self.sessions[name] = [*self.sessions[name][:-1], replace(self.sessions[name][-1], open=False)]

    @rule()
    def spill(self) -> None:
        """Take K and V off the device."""
        self.run(self.replica.spill())

    @rule()
    def restart(self) -> None:
        """Lose what is in memory; the disk stays."""
        self.run(self.replica.restart())

    @precondition(lambda self: self.sessions)
    @rule(number=PICK, expire=st.booleans())
    def remove(self, number: int, expire: bool) -> None:
        """Delete a session, or let it expire."""
        name = self.pick(number)
        if expire:
            self.run(self.replica.manager.update(TENANT, name, SessionPatch(ttl_seconds=3600.0)))
            assert 1 == self.run(self.replica.core.housekeeper.reap(time.time() + 7200.0))
        else:
            self.run(self.replica.manager.delete(TENANT, name))
        del self.sessions[name]

    @invariant()
    def agree(self) -> None:
        """Check that the books are sound and every session is what it must be."""
        if hasattr(self, "sessions"):
            self.run(self._agree())

    async def _agree(self) -> None:
        await self.replica.check()
        page, _ = await self.replica.manager.list(TENANT, labels={}, page_size=100, page_token="")
        expected = {name: (len(turns), sum(len(turn.ids) for turn in turns), turns[-1].open) for name, turns in self.sessions.items()}
        assert expected == {info.record.id: (info.n_turns, info.n_tokens, info.open_turn) for info in page}
        for name, turns in self.sessions.items():
            session = self.replica.manager.table.live(TENANT, name)
            if session is not None:
                assert [turn.ids for turn in turns] == [turn.token_ids for turn in session.turns]
                assert [turn.messages for turn in turns] == [turn.messages for turn in session.turns]

    def teardown(self) -> None:
        """Stop the replica."""
        if hasattr(self, "runner"):
            self.run(self.replica.core.close(1.0))
            self.runner.close()
            shutil.rmtree(self.state)


SessionsMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
TestSessionsMachine = SessionsMachine.TestCase
