"""What the engine is asked to do for a session: the part that replies, appends and background work have in common."""

from __future__ import annotations

from dataclasses import replace

from agentmem.engine.run import EngineRequest
from agentmem.memory.hashing import Chain
from agentmem.sessions import budgets
from agentmem.sessions.session import Session
from agentmem.types import Fidelity, Policy, RequestId

BITS_IN_BYTE = 8


def engine_request(session: Session, chain: Chain, fidelity: Fidelity) -> EngineRequest:
    """Return a request that computes the K and V of ``chain`` for the session, with the budgets and the memory it has now."""
    return EngineRequest(
        request_id=RequestId(""),
        tenant=session.record.tenant,
        chain=chain,
        branch=session.branch,
        max_length=len(chain),
        computed_before=session.computed,
        fidelity=fidelity,
        memory=session.sealed,
        policy=running_policy(session),
    )


def running_policy(session: Session) -> Policy:
    """Return the policy of a run that starts now: with the budgets that reports have led to, and the codes that there are.

    Until everything is compressed anew under a changed policy, the codes are as long as the old one had them.
    """
    policy = budgets.effective(session.record.policy, session.turns)
    if session.sealed is None:
        return policy
    return replace(policy, bits=session.sealed.units[0].codes.shape[-1] * BITS_IN_BYTE)


def background_request(session: Session) -> EngineRequest:
    """Return a request that brings the session's memory up to date when nobody else needs the engine.

    Where some of its rows were left to the archive it stays that way, whatever the next call may ask for.
    """
    fidelity = session.fidelity_for(None, len(session.chain) + 1)
    is_compact = session.branch is not None and session.branch.alive and session.branch.covers > 0
    if fidelity is Fidelity.EXACT and is_compact:
        fidelity = Fidelity.COMPACT
    return replace(engine_request(session, session.chain.copy(), fidelity), background=True)


def is_current(session: Session) -> bool:
    """Return whether the session's branch is made of what the session's next call would attend to."""
    branch = session.branch
    if branch is None or not branch.alive or session.fidelity_for(None, len(session.chain) + 1) is Fidelity.EXACT:
        return True
    root = branch.root
    if root is None or root.compact is None or session.sealed is None:
        return root is None and session.sealed is None
    return root.compact.sealed.is_same(session.sealed)


def approximate_from(session: Session) -> int | None:
    """Return the first position whose K and V on the device are approximate; None when none are."""
    branch = session.branch
    return branch.approx_from if branch is not None and branch.alive else None
