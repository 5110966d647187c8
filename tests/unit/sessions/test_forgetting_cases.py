"""Forget: what leaves the ledger and the disk, what is rendered anew, what comes again, and faults on the way."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.forgetting import FORGET, SECRET, SYSTEM, assert_exact, files_with, forget, told, unread
from support.replica import OTHER, PROMPT, TENANT, Replica, encode, gather_bytes, rendered, until, user

from agentmem import faults
from agentmem.chat import Chat
from agentmem.errors import InvalidInput, NotFound, SessionBusy, TemplateNotAppendable
from agentmem.types import Fidelity, Message, MissReason, TurnInput
from agentmem.views import ForgetTarget


async def test_the_content_goes(replica: Replica) -> None:
    """Message, tokens, blocks and their results are gone from memory, ledger, disk and export; an audit entry stays."""
    await told(replica)
    await replica.settle()
    session = replica.session()
    before, text = list(session.chain.hashes), rendered([("user", SECRET)])
    first = next(i for i in range(len(session.chain)) if session.chain.tokens[i : i + len(encode(SECRET))] == encode(SECRET))
    assert files_with(replica.state, SECRET)
    info = await replica.manager.forget(TENANT, "a", FORGET)

    assert [] == files_with(replica.state, SECRET)
    assert SECRET not in (await gather_bytes(replica.manager.export(TENANT, "a"))).decode()
    turn = replica.core.ledger.turns(TENANT, session.record.id)[1]
    assert ("user", "", "after") == (turn.messages[1].role, turn.messages[1].content, turn.messages[2].content)
    (entry,) = turn.forgotten
    assert (1, "user", len(encode(text))) == (entry.message_index, entry.role, entry.tokens)
    assert "" == turn.input_digest
    gone = [name.hex() for name in before[first // session.chain.block_tokens :]]
    assert not [path for path in (replica.state / "blocks").rglob("*.safetensors") if path.name[:64] in gone]
    assert info.n_tokens == len(session.chain)
    _, turns = await replica.manager.inspect(TENANT, "a")
    assert [0, 1, 0, 0] == [each.forgotten for each in turns]
    await replica.check()


async def test_the_rest_is_rendered_as_if_it_had_never_been_said(replica: Replica) -> None:
    """The session's tokens are those of a conversation without the message; generated tokens are the same ones."""
    await told(replica)
    replies = [turn.token_ids[turn.reply_start :] for turn in replica.session().turns[1:]]
    await forget(replica)

    turns = replica.session().turns
    assert replies == [turn.token_ids[turn.reply_start :] for turn in turns[1:]]
    said = rendered([("system", SYSTEM), ("user", "before " * 5), ("user", "after")])
    assert encode(said + PROMPT) == list(turns[0].token_ids + turns[1].token_ids[: turns[1].reply_start])
    assert ["before " * 5, "after"] == [message.content for message in turns[1].remembered if message.role == "user"]


@pytest.mark.parametrize("settled", [False, True])
async def test_exact_is_as_if_never_read(replica: Replica, settled: bool) -> None:
    """A call that asks for EXACT equals a session that never read the message, at once and after the background has done the work."""
    await told(replica)
    await replica.settle()
    async with replica.session().background.resting():  # type: ignore[union-attr]
        await forget(replica)
        if not settled:
            answer = await unread(replica, "a", fidelity=Fidelity.EXACT)
    if settled:
        await replica.settle()
        answer = await unread(replica, "a", fidelity=Fidelity.EXACT)
    assert_exact(replica, answer)

    if not settled:
        assert (MissReason.FORGOTTEN, "turn 1") == (answer.start.reuse.reason, answer.start.reuse.detail)
        assert 0 < answer.start.reuse.device < answer.start.context_tokens - 40  # the prefix before the hole is shared
    assert replica.session().stale is None
    assert (await replica.manager.get(TENANT, "a")).exact
    assert_exact(replica, await replica.ask("a", "and again"))


async def test_a_fresh_session_says_the_same(replica: Replica) -> None:
    """A session that is fed the messages that remain, and never the other, answers with the same tokens."""
    await replica.create("a", system=SYSTEM)
    await replica.manager.append(TENANT, "a", user("first"), request_id=None)
    await replica.manager.append(TENANT, "a", user(SECRET), request_id=None)
    await replica.manager.append(TENANT, "a", user("last"), request_id=None)
    await forget(replica)
    answer = await unread(replica, "a", fidelity=Fidelity.EXACT)
    await replica.create("b", system=SYSTEM)
    fresh = await replica.ask("b", TurnInput(messages=tuple(Message("user", text) for text in ("first", "last", "next"))))

    assert replica.tokens("b") == replica.tokens("a")
    assert fresh.token_ids == answer.token_ids
    assert_exact(replica, answer)


async def test_a_turn_that_loses_everything_still_closes_the_one_before(replica: Replica) -> None:
    """Where nothing is left of a turn, the next closes the reply before it, as it would have in a conversation without that turn."""
    await replica.create(system=SYSTEM)
    await replica.ask("a", "one")
    await replica.manager.append(TENANT, "a", user(SECRET), request_id=None)
    await replica.manager.end_turn(TENANT, "a", waiting_on_tool=False, eta_seconds=0.0)
    await replica.ask("a", "three")
    await forget(replica, targets=[ForgetTarget(2, 0)])
    session = replica.session()
    await replica.create("b", system=SYSTEM)
    for text in ("one", "three"):
        await replica.ask("b", text)
    opening, expected = (turn.token_ids[: turn.reply_start] for turn in (session.turns[3], replica.session("b").turns[2]))

    assert () == session.turns[2].token_ids
    assert expected == opening
    assert_exact(replica, await unread(replica, "a", fidelity=Fidelity.EXACT))


async def test_forks_keep_what_they_have(replica: Replica) -> None:
    """A fork made before is another session: its content and its blocks stay; one made after knows nothing."""
    await told(replica)
    await replica.settle()
    await replica.manager.fork(TENANT, "a", at_turn=None, new_id="before", labels=None)
    await forget(replica)
    await replica.manager.fork(TENANT, "a", at_turn=None, new_id="after", labels=None)

    assert SECRET in [message.content for message in replica.session("before").messages]
    assert replica.session("a").turns == replica.session("after").turns
    for name in ("before", "after", "a"):
        assert_exact(replica, await replica.ask(name, "next", fidelity=Fidelity.EXACT), name)
    await replica.restart()
    assert_exact(replica, await replica.ask("before", "next"), "before")
    assert replica.core.ledger.turns(TENANT, replica.session("before").record.id)[1].forgotten == ()


async def test_it_lasts(replica: Replica) -> None:
    """After a restart, an export and an import the message is forgotten, the audit entry is there, and replies are exact."""
    await told(replica)
    await forget(replica)
    turns = list(replica.session().turns)
    await replica.restart()
    assert_exact(replica, await replica.ask("a", "next"))
    assert turns == replica.session().turns[:4]
    data = await gather_bytes(replica.manager.export(TENANT, "a"))
    assert "forgotten_at" in data.decode()

    async def chunks() -> object:
        yield data

    await replica.manager.import_session(TENANT, chunks(), new_id="b")  # type: ignore[arg-type]
    assert replica.session("a").turns == replica.session("b").turns
    await replica.manager.rollback(TENANT, "a", to_turn=0)
    assert 1 == len(replica.session("a").turns)


@pytest.mark.parametrize("way", ["resent", "empty", "left out"])
async def test_a_resent_history(replica: Replica, way: str) -> None:
    """A client that resends the whole conversation goes on in the same session, whether it sends the forgotten message or not."""
    await told(replica)
    history = replica.session().messages
    await forget(replica)
    if way == "left out":
        history.pop(1)
    if way == "empty":
        history[1] = Message("user", "")
    answer = await replica.ask("a", TurnInput(messages=(*history, Message("user", "next")), full_history=True))

    assert "a" == answer.start.session_id
    assert 5 == len(replica.session().turns)
    assert SECRET not in [message.content for message in replica.session().messages]
    changed = [*history[:2], Message("user", "otherwise")]
    forked = await replica.ask("a", TurnInput(messages=tuple(changed), full_history=True))
    assert "a" != forked.start.session_id


async def test_it_refuses(replica: Replica) -> None:
    """What does not exist, the prelude, the assistant's words and another tenant's session are refused by name; nothing is forgotten."""
    await told(replica)
    before = list(replica.session().turns)
    for target, problem in (
        (ForgetTarget(0, 0), r"turn 0 \(there are 1 to 3\)"),
        (ForgetTarget(4, 0), r"turn 4 \(there are 1 to 3\)"),
        (ForgetTarget(1, 4), r"message 4 of turn 1 \(it has 4\)"),
        (ForgetTarget(1, -1), "message -1 of turn 1"),
        (ForgetTarget(1, 3), "message 3 of turn 1 is the assistant's"),
    ):
        with pytest.raises(InvalidInput, match=problem):
            await forget(replica, targets=[FORGET[0], target])
    with pytest.raises(NotFound):
        await replica.manager.forget(OTHER, "a", FORGET)
    reply = asyncio.create_task(replica.ask("a", "go on", 40))
    await until(lambda: replica.session().writer is not None)
    with pytest.raises(SessionBusy):
        await forget(replica)
    await reply
    assert before == replica.session().turns[:4]


@pytest.mark.parametrize("point", ["ledger.before_commit", "ledger.after_commit"])
async def test_a_fault_on_the_way(replica: Replica, point: str) -> None:
    """Whatever breaks between the steps, the session is either as it was or has forgotten, and what the ledger says is what is served."""
    await told(replica)
    await replica.settle()
    faults.arm(point, "error", 1)
    try:
        with pytest.raises(RuntimeError):
            await forget(replica)
    finally:
        faults.disarm()
    answer = await replica.ask("a", "next", fidelity=Fidelity.EXACT)
    assert_exact(replica, answer)
    known = SECRET in [message.content for message in replica.session().messages]
    assert (point == "ledger.before_commit") is known
    await replica.restart()
    await until(lambda: bool(files_with(replica.state, SECRET)) is known)
    assert_exact(replica, await replica.ask("a", "again"))


async def test_the_audit_knows_no_content(replica: Replica) -> None:
    """The same words have another digest under another tenant, and the request's own digest goes; a retry of the request is answered."""
    await replica.create("a")
    await replica.ask("a", SECRET, request_id="r")
    first = replica.session().turns[1].token_ids
    await forget(replica, targets=[ForgetTarget(1, 0)])
    await replica.create("a", tenant=OTHER)
    await replica.ask("a", SECRET, tenant=OTHER)
    await replica.manager.forget(OTHER, "a", [ForgetTarget(1, 0)])
    digests = {replica.session("a", tenant).turns[1].forgotten[0].digest for tenant in (TENANT, OTHER)}

    assert 2 == len(digests)
    again = await replica.ask("a", SECRET, request_id="r")
    assert first[-len(again.token_ids) :] == again.token_ids
    assert "80731" not in json.dumps([str(replica.session("a", tenant).turns) for tenant in (TENANT, OTHER)])


async def test_the_first_message_of_all(replica: Replica) -> None:
    """Where the template renders no reply to nothing, an empty message stays in the place of the only one; the words go all the same."""
    await replica.create("a")
    await replica.ask("a", SECRET)
    await forget(replica, targets=[ForgetTarget(1, 0)])
    turn = replica.session().turns[1]

    assert encode(rendered([("user", "")]) + PROMPT) == list(turn.token_ids[: turn.reply_start])
    assert [] == files_with(replica.state, SECRET)
    assert_exact(replica, await replica.ask("a", "next", fidelity=Fidelity.EXACT))
    assert_exact(replica, await replica.ask("a", "and on", fidelity=Fidelity.EXACT))


async def test_a_template_that_takes_neither_refuses(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the conversation cannot be rendered at all, the call says so and nothing is forgotten."""
    await told(replica)

    def refuse(*_: object, **__: object) -> list[int]:
        raise TemplateNotAppendable("no")

    monkeypatch.setattr(Chat, "encode", refuse)
    with pytest.raises(TemplateNotAppendable):
        await forget(replica)
    assert SECRET == replica.session().turns[1].messages[1].content
    assert replica.session().writer is None
