"""Data work: a table is made with Python, looked at, and evaluated."""

from __future__ import annotations

from agentmem.bench.scripts.player import Player, Script, code, replaced

MAKE = """import ast, csv
from pathlib import Path
rows = []
for path in sorted(Path(".").glob("*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            rows.append([path.stem, node.name, lines, len(node.args.args), bool(ast.get_docstring(node))])
with open("functions.csv", "w", newline="") as file:
    writer = csv.writer(file, lineterminator="\\n")
    writer.writerow(["module", "function", "lines", "arguments", "documented"])
    writer.writerows(rows)
for module in sorted({row[0] for row in rows}):
    own = [row for row in rows if row[0] == module]
    print(module, len(own), "functions,", sum(row[4] for row in own), "documented,", max(row[2] for row in own), "lines at most")"""
MEANS = """import csv
from statistics import mean, median
with open("functions.csv") as file:
    rows = list(csv.DictReader(file))
print("module,functions,mean_lines,median_lines,documented_percent")
for module in sorted({row["module"] for row in rows}):
    own = [row for row in rows if row["module"] == module]
    lines = [int(row["lines"]) for row in own]
    documented = 100 * sum(row["documented"] == "True" for row in own) / len(own)
    print(f"{module},{len(own)},{mean(lines):.1f},{median(lines):.1f},{documented:.0f}")"""


def play(agent: Player) -> None:
    """Play the agent."""
    agent.user("Make a table functions.csv of all functions in the modules here: module, name, lines, arguments, documented or not.")
    agent.call("list_files", directory=".")
    agent.call("run_python", code=MAKE)
    agent.call("read_file", "I look at the beginning of the table.", path="functions.csv", start=1, end=30)
    agent.say("functions.csv has one row for each function, with module, function, lines, arguments and documented as columns.")
    agent.user("For each module: the number of functions, mean and median of lines, and how many percent are documented.")
    means = agent.call("run_python", code=MEANS)
    agent.say("As CSV:\n" + code(means, "csv"))
    agent.user("Run the same again, but only for functions of at least 10 lines.")
    long = replaced(MEANS, "rows = list(csv.DictReader(file))", 'rows = [row for row in csv.DictReader(file) if int(row["lines"]) >= 10]')
    result = agent.call("run_python", code=long)
    agent.say("Functions of 10 lines and more:\n" + code(result, "csv"))
    agent.user("Put both tables into summary.csv, with a column that says which one a row belongs to.")
    rows = [f"{kind},{line}" for kind, text in (("all", means), ("long", result)) for line in text.splitlines()[1:]]
    content = "\n".join([f"functions_of,{means.splitlines()[0]}", *rows]) + "\n"
    agent.call("write_file", path="summary.csv", content=content)
    agent.say("summary.csv has a first column functions_of, which is `all` or `long`.")
    agent.user("Which are the functions without documentation that have more than 20 lines?")
    agent.call("grep", pattern=r",(2[1-9]|[3-9]\d|\d{3}),\d+,False$", path="functions.csv")
    agent.say("Five functions: `read_token` of shlex (145 lines), `has_header` and `__next__` of csv, `__init__` of shlex and textwrap.")
    agent.user("Give me summary.csv as a Markdown table.")
    agent.call("read_file", path="summary.csv", start=1, end=40)
    first, *others = (f"| {' | '.join(line.split(','))} |" for line in content.splitlines())
    agent.say("\n".join([first, "|" + " --- |" * (first.count("|") - 1), *others]))


SCRIPT = Script(
    name="csv_statistics",
    about="Makes a table of all functions of six modules, computes means of it and writes the results down in three forms.",
    system="You are a data analyst. Compute with Python, never in your head, and give tables exactly as they were computed.",
    tools=("list_files", "read_file", "grep", "write_file", "run_python"),
    files=("bisect.py", "csv.py", "fnmatch.py", "heapq.py", "shlex.py", "textwrap.py"),
    play=play,
)
