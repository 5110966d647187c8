"""A file is explained function by function, and what was read is repeated word for word."""

from __future__ import annotations

from agentmem.bench.scripts.player import Player, Script, code, replaced

PATH = "json/decoder.py"
PROBE = r"""import json
for text in ('{"a": [1, 2}', '[1 2]', '["\\ud83d\\ude00"]', '[1, 2,]'):
    try:
        print(repr(text), "gives", ascii(json.loads(text)))
    except json.JSONDecodeError as error:
        print(repr(text), "fails:", error)"""


def play(agent: Player) -> None:
    """Play the agent."""
    agent.user("I want to understand json/decoder.py. What does JSONArray do?")
    agent.call("find_symbol", name="JSONArray")
    agent.call("read_file", path=PATH, start=217, end=251)
    agent.say(
        "JSONArray parses the inside of an array. It gets the string and the index after the opening bracket, calls scan_once for each "
        "value, skips white space around commas, and returns the list of values and the index after the closing bracket. An empty array "
        "is a special case at the top. What is neither a comma nor a bracket raises JSONDecodeError."
    )
    agent.user("Repeat the function you just read, word for word.")
    agent.say(code(agent.source(PATH, "JSONArray")))
    agent.user("Now rewrite it with one change: the error should say which delimiters are expected, a comma or a bracket.")
    changed = replaced(agent.source(PATH, "JSONArray"), "\"Expecting ',' delimiter\"", "\"Expecting ',' or ']'\"")
    agent.say(code(changed))
    agent.user("I'll think about that. How are strings read? Look at py_scanstring and the function before it.")
    agent.call("read_file", path=PATH, start=59, end=126)
    agent.say(
        "py_scanstring reads chunks up to a quote, a backslash or a control character. After a backslash it looks the character up in "
        "a table, or decodes four hexadecimal digits with _decode_uXXXX. Two escapes that are a surrogate pair are joined:\n"
        + code(agent.lines(PATH, 116, 126))
    )
    agent.user("Quote _decode_uXXXX and the part of py_scanstring that handles control characters.")
    agent.say(code(agent.source(PATH, "_decode_uXXXX")) + "\n\n" + code(agent.lines(PATH, 93, 102)))
    agent.user("Try a few broken inputs, and one with a surrogate pair.")
    agent.call("run_python", code=PROBE)
    agent.say(
        "A missing comma or bracket, and a trailing comma, are errors with a line and a column. The surrogate pair is joined to U+1F600."
    )
    agent.user("Where does the message for the trailing comma come from? Search for it.")
    agent.call("grep", pattern="Expecting", path="json")
    agent.say(
        "From the call of scan_once in JSONArray: after the comma it finds no value, and the StopIteration is turned into an error:\n"
        + code(agent.lines(PATH, 229, 233))
    )


SCRIPT = Script(
    name="json_verbatim",
    about="Explains functions of json/decoder.py and repeats them word for word, once with one change.",
    system="You explain Python code to a colleague. Read it with the tools before you speak about it; quote it exactly.",
    tools=("read_file", "grep", "find_symbol", "run_python"),
    files=("json/__init__.py", "json/decoder.py", "json/encoder.py", "json/scanner.py"),
    play=play,
)
