"""Tools as agents really have them, with something to ask of each: a schema's usual shape rather than a random one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from agentmem.types import ToolSpec

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AskedTool:
    """A tool, and what a user says who wants it called."""

    spec: ToolSpec
    request: str


def _text(most: int, about: str = "", **more: Any) -> Schema:  # noqa: ANN401 - any keyword of JSON schema
    return {"type": "string", "maxLength": most, **({"description": about} if about else {}), **more}


def _whole(least: int, most: int, about: str = "") -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most, **({"description": about} if about else {})}


def _one_of(*values: Any) -> Schema:  # noqa: ANN401 - any JSON scalar
    return {"enum": list(values)}


def _list(items: Schema, most: int) -> Schema:
    return {"type": "array", "items": items, "maxItems": most}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _tool(name: str, about: str, request: str, *required: str, defs: Schema | None = None, **properties: Schema) -> AskedTool:
    schema = _object(required, **properties) | ({"$defs": defs} if defs else {})
    return AskedTool(ToolSpec(name, about, json.dumps(schema, ensure_ascii=False)), request)


FLAG: Schema = {"type": "boolean"}
DAY = _text(10, "YYYY-MM-DD", pattern="^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$")
TIME = _text(5, "HH:MM", pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$")
PATH = _text(120, "relative path")

TOOLS = (
    _tool(
        "read_file",
        "Read lines of a file.",
        "Show me the first 40 lines of src/app/main.py.",
        "path",
        path=PATH,
        start=_whole(1, 1_000_000),
        end=_whole(1, 1_000_000),
        encoding=_one_of("utf-8", "latin-1", "utf-16"),
    ),
    _tool(
        "write_files",
        "Create or replace files, each as a whole.",
        "Write a README with one line, and an empty .gitignore.",
        "files",
        files={**_list(_object(("path", "content"), path=_text(60), content=_text(120), executable=FLAG), 2), "minItems": 1},
    ),
    _tool(
        "list_directory",
        "List a directory.",
        "What is in the tests folder, two levels deep? No hidden files.",
        "path",
        path=PATH,
        depth=_whole(0, 16),
        hidden=FLAG,
        sort_by=_one_of("name", "size", "modified"),
    ),
    _tool(
        "grep",
        "Search files for a regular expression.",
        "Find every TODO in the Python files.",
        "pattern",
        pattern=_text(80, "regular expression"),
        include=_list(_text(30, "glob"), 3),
        ignore_case=FLAG,
        context_lines=_whole(0, 20),
    ),
    _tool(
        "git_commit",
        "Commit staged changes.",
        "Commit this as a fix of the login timeout, signed off by Ada.",
        "message",
        message=_text(160),
        author={"anyOf": [{"type": "null"}, _object(("name", "email"), name=_text(40), email=_text(40))]},
        amend=FLAG,
        trailers=_list(_object(("key", "value"), key=_one_of("Signed-off-by", "Co-authored-by", "Fixes"), value=_text(40)), 2),
    ),
    _tool(
        "web_search",
        "Search the web.",
        "Look for news on battery recycling from last week, five results.",
        "query",
        query=_text(100),
        count=_whole(1, 20),
        freshness=_one_of("day", "week", "month", None),
        sites=_list(_text(40), 3),
    ),
    _tool(
        "get_weather",
        "Get the weather, or a forecast of up to 14 days.",
        "How warm will it be in Zürich over the next three days?",
        "location",
        "unit",
        location={
            "anyOf": [_object(("city",), city=_text(40), country=_text(2, pattern="^[A-Z]{2}$")), {"$ref": "#/$defs/point"}],
        },
        unit=_one_of("celsius", "fahrenheit"),
        days=_whole(1, 14),
        defs={"point": _object(("lat", "lon"), lat=_whole(-90, 90), lon=_whole(-180, 180))},
    ),
    _tool(
        "run_sql",
        "Run a read-only query.",
        "Count the orders of each customer in May.",
        "sql",
        sql=_text(200),
        parameters=_list({"anyOf": [_text(30), _whole(-1_000_000, 1_000_000), FLAG, {"type": "null"}]}, 3),
        limit=_whole(1, 1000),
        explain=FLAG,
    ),
    _tool(
        "create_event",
        "Put an event into the calendar.",
        "Lunch with Bob and Eve on the 3rd of June 2026 at noon, for an hour; remind me 15 minutes before.",
        "title",
        "start",
        title=_text(60),
        start={"$ref": "#/$defs/moment"},
        minutes=_whole(5, 1440),
        attendees=_list(_object(("name",), name=_text(30), status=_one_of("needs-action", "accepted", "declined")), 3),
        reminders=_list(_whole(0, 10_080), 2),
        repeat={"anyOf": [{"const": "never"}, _object(("every", "times"), every=_one_of("day", "week"), times=_whole(1, 52))]},
        defs={"moment": _object(("date", "time"), date=DAY, time=TIME)},
    ),
    _tool(
        "shell",
        "Run a command and return its output.",
        "Run the unit tests quietly, with a time limit of two minutes.",
        "command",
        command={**_list(_text(40), 6), "minItems": 1},
        timeout_seconds=_whole(1, 3600),
        workdir=_text(60),
        env=_list(_object(("name", "value"), name=_text(20, pattern="^[A-Z_][A-Z0-9_]{0,18}$"), value=_text(30)), 2),
    ),
    _tool(
        "browser",
        "Act on the page that is open.",
        "Click on the button that says Sign in.",
        "action",
        action={
            "anyOf": [
                _object(("type", "selector"), type={"const": "click"}, selector=_text(60), button=_one_of("left", "middle", "right")),
                _object(("type", "selector", "text"), type={"const": "fill"}, selector=_text(60), text=_text(80), submit=FLAG),
                _object(("type", "url"), type={"const": "goto"}, url=_text(100, pattern="^https?://")),
                _object(("type", "pixels"), type={"const": "scroll"}, pixels=_whole(-10_000, 10_000)),
            ]
        },
    ),
    _tool(
        "send_email",
        "Send a message.",
        "Tell the team that the release is moved to Friday.",
        "to",
        "subject",
        "body",
        to={**_list(_text(40, pattern="^[a-z.]{1,16}@[a-z]{1,12}[.](com|org|net)$"), 3), "minItems": 1},
        subject=_text(80),
        body=_text(240),
        priority=_one_of("low", "normal", "high"),
    ),
)
