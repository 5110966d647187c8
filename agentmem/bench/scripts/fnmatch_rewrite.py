"""Functions are rewritten as a whole with one change each, and the change is applied."""

from __future__ import annotations

from agentmem.bench.scripts.player import Player, Script, code, replaced

PATH = "fnmatch.py"
TRY = """import fnmatch
names = ["a.py", "b.PY", "c.txt", "d.pyc", "README"]
for pattern in ("*.py", "*.py*", "[ab]*", "*"):
    print(pattern, fnmatch.filter(names, pattern), fnmatch.filterfalse(names, pattern))
print(sorted(fnmatch.__all__))"""
TRANSLATE = """import fnmatch
for pattern in ("*.py", "[!ab]?", "a[", "[z-a]", "**x**"):
    print(f"{pattern:8}", fnmatch.translate(pattern))"""


def play(agent: Player) -> None:
    """Play the agent."""
    agent.user("fnmatch.filter keeps the names that match. I need filterfalse, which keeps the others. Read filter first.")
    agent.call("read_file", path=PATH, start=12, end=73)
    agent.say(
        "filter compiles the pattern once and collects the names for which it matches; on POSIX it leaves normcase out of the loop. "
        "filterfalse can be the same with both conditions turned round."
    )
    agent.user("Write the whole of filterfalse.")
    old = agent.source(PATH, "filter")
    new = replaced(replaced(old, "if match(", "if not match("), "def filter(", "def filterfalse(")
    new = replaced(new, "that match PAT.", "that do not match PAT.")
    agent.say(code(new))
    agent.user("Put it after filter, and into __all__.")
    tail = agent.lines(PATH, 59, 62)
    agent.call("edit_file", path=PATH, old=tail, new=f"{tail}\n\n{new}")
    listed = agent.lines(PATH, 17, 17)
    agent.call("edit_file", path=PATH, old=listed, new=replaced(listed, '"filter", ', '"filter", "filterfalse", '))
    agent.call("run_python", code=TRY)
    agent.say("filterfalse is in fnmatch.py and gives what filter leaves out.")
    agent.user("Could filter be written with list comprehensions? Show it whole, with everything else as it is.")
    loop = "for name in names:\n            if match({0}):\n                result.append(name)"
    rewritten = old
    for name in ("name", "os.path.normcase(name)"):
        rewritten = replaced(rewritten, loop.format(name), f"result = [name for name in names if match({name})]")
    rewritten = replaced(rewritten, "    result = []\n", "")
    agent.say(code(rewritten))
    agent.user("Apply that to filter.")
    agent.call("edit_file", path=PATH, old=old, new=rewritten)
    agent.call("run_python", code=TRY)
    agent.say("Applied; the results are the same as before.")
    agent.user("What does translate do with a range that is the wrong way round, such as [z-a]? Read it.")
    agent.call("grep", pattern="translate", path=".")
    start = agent.line("def translate", PATH)
    agent.call("read_file", path=PATH, start=start, end=start + 73)
    agent.call("run_python", code=TRANSLATE)
    agent.say(
        "It removes empty ranges, because re would refuse them, and what is left matches nothing at all, written as `(?!)`:\n"
        + code(agent.lines(PATH, start + 48, start + 62))
    )


SCRIPT = Script(
    name="fnmatch_rewrite",
    about="Writes a variant of fnmatch.filter, applies it, rewrites filter itself, and looks at what it is built on.",
    system="You are a programmer who changes one thing at a time. When asked for a function, write the whole function.",
    tools=("read_file", "grep", "edit_file", "run_python"),
    files=("fnmatch.py", "glob.py"),
    play=play,
)
