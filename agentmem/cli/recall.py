"""``agentmem recall``: what a text would bring back to a session's mind."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from agentmem.cli import options
from agentmem.cli.output import bar, print_json, print_table, snippet

SHOWN_CHARACTERS = 100


def recall(
    session_id: options.SessionId,
    text: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Most pieces of text to show.")] = 10,
    target: options.Target = options.DEFAULT_TARGET,
    token: options.Token = "",
    json_output: options.Json = False,
) -> None:
    """Show which parts of a session a text attends to, the heaviest first. The session stays as it is."""
    with options.connect(target, token) as client:
        spans = client.attach(session_id).recall(text, k)
    if json_output:
        print_json([asdict(span) for span in spans])
        return
    most = max((span.weight for span in spans), default=0.0)
    rows = (
        (
            f"{span.weight:.1%}",
            bar(span.weight, most),
            span.turn_index,
            f"{span.first_token} to {span.first_token + span.n_tokens - 1}",
            snippet(span.text, SHOWN_CHARACTERS),
        )
        for span in spans
    )
    print_table(("weight", "", "turn", "tokens", "text"), rows)
