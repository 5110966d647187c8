"""A configuration in JSON is changed several times, and written back whole each time."""

from __future__ import annotations

import json
from typing import Any

from agentmem.bench.scripts.player import Player, Script, code

PATH = "settings.json"
SETTINGS: dict[str, Any] = {
    "service": {"listen": "127.0.0.1:8080", "workers": 4, "timeout_seconds": 30},
    "storage": {"kind": "sqlite", "path": "data/logs.sqlite", "keep_days": 14, "compress": False},
    "logging": {"level": "info", "format": "%(levelname)s %(message)s"},
    "formats": [
        {"name": "apache", "pattern": '^(\\S+) \\S+ "([^"]*)" (\\d+)', "enabled": True},
        {"name": "syslog", "pattern": "^(\\S+ \\d+) ([^:]+): (.*)$", "enabled": True},
    ],
}
VALIDATE = """import json, re
settings = json.load(open("settings.json"))
for section, values in settings.items():
    print(section, type(values).__name__, len(values), "entries:", ", ".join(values) if isinstance(values, dict) else "")
for entry in settings["formats"]:
    print(entry["name"], "groups:", re.compile(entry["pattern"]).groups, "enabled:", entry["enabled"])"""


def written(settings: dict[str, Any]) -> str:
    """Return ``settings`` as the file holds it."""
    return json.dumps(settings, indent=2) + "\n"


def play(agent: Player) -> None:
    """Play the agent."""
    settings = json.loads(json.dumps(SETTINGS))
    agent.give(PATH, written(settings))
    agent.user("In settings.json, turn compression on and keep logs for 30 days. Write the whole file back.")
    agent.call("read_file", path=PATH, start=1, end=80)
    settings["storage"] |= {"keep_days": 30, "compress": True}
    agent.call("write_file", path=PATH, content=written(settings))
    agent.call("run_python", "I check that it is still valid.", code=VALIDATE)
    agent.say("Compression is on and logs are kept for 30 days. Nothing else was changed, and the file is valid.")
    agent.user("Add a format `nginx` with the pattern of apache, disabled. Write the whole file.")
    settings["formats"].append(settings["formats"][0] | {"name": "nginx", "enabled": False})
    agent.call("write_file", path=PATH, content=written(settings))
    agent.call("run_python", code=VALIDATE)
    agent.say("The format `nginx` is there, with two others as before:\n" + code(json.dumps(settings["formats"][2], indent=2), "json"))
    agent.user("Show me the whole file.")
    agent.call("read_file", path=PATH, start=1, end=80)
    agent.say(code(written(settings).rstrip(), "json"))
    agent.user("Which of the standard library's functions would read this? Quote the signature of json.load and what it says.")
    agent.call("grep", pattern="^def ", path="json")
    agent.call("read_file", path="json/__init__.py", start=274, end=296)
    agent.say(code(agent.source("json/__init__.py", "load")))
    agent.user("Good. Last change: 8 workers and level debug. Write the file.")
    settings["service"]["workers"] = 8
    settings["logging"]["level"] = "debug"
    agent.call("write_file", path=PATH, content=written(settings))
    agent.call("grep", pattern="workers|level|compress|keep_days|name|enabled", path=PATH)
    agent.say("Done: 8 workers, and the log level is debug.")


SCRIPT = Script(
    name="settings_json",
    about="Changes a JSON configuration three times and writes it back whole each time.",
    system="You maintain configuration files. Change only what is asked, keep everything else byte for byte, and check the result.",
    tools=("read_file", "write_file", "grep", "run_python"),
    files=("json/__init__.py", "json/decoder.py", "json/encoder.py", "json/scanner.py", "json/tool.py"),
    play=play,
)
