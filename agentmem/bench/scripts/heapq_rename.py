"""A function is renamed: found, read, edited at each place, read again."""

from __future__ import annotations

from agentmem.bench.scripts.player import Player, Script, code, replaced

OLD, NEW = "_siftup_max", "_sift_to_leaf_max"
CHECK = """import sys
sys.modules["_heapq"] = None  # the C version would hide the change
import heapq
numbers = [7, 1, 9, 4, 12, 3]
print("smallest", heapq.nsmallest(3, numbers))
print("largest", heapq.nlargest(3, numbers))
print("merged", list(heapq.merge([9, 4, 1], [12, 7, 3], reverse=True)))
heap = list(numbers)
heapq._heapify_max(heap)
print("heap", list(heap), "popped", [heapq._heappop_max(heap) for _ in numbers])"""


def play(agent: Player) -> None:
    """Play the agent."""
    agent.user(f"Rename the helper {OLD} in heapq.py to {NEW}, everywhere. The name should say that it goes down to a leaf first.")
    agent.call("grep", pattern=OLD, path="heapq.py")
    agent.call("edit_file", path="heapq.py", old=f"{OLD}(heap, 0)", new=f"{NEW}(heap, 0)")
    agent.call(
        "read_file", "The line occurs twice, so I read the functions and replace each as a whole.", path="heapq.py", start=181, end=202
    )
    for name in ("_heappop_max", "_heapreplace_max", "_heapify_max"):
        old = agent.source("heapq.py", name)
        agent.call("edit_file", path="heapq.py", old=old, new=replaced(old, OLD, NEW))
    agent.call("read_file", "Now the function itself.", path="heapq.py", start=280, end=314)
    head = agent.lines("heapq.py", 295, 298)
    agent.call("edit_file", path="heapq.py", old=head, new=replaced(head, OLD, NEW))
    agent.call("grep", "I check that the old name is gone.", pattern=f"{OLD}|{NEW}", path="heapq.py")
    agent.call("run_python", code=CHECK)
    agent.say(
        f"`{OLD}` is now called `{NEW}`: its definition and the three functions that call it. The pure Python version works as before."
    )
    agent.user("Repeat the three callers as they are now, I want to compare them.")
    agent.say(code("\n\n".join(agent.source("heapq.py", name) for name in ("_heappop_max", "_heapreplace_max", "_heapify_max"))))
    agent.user(f"Now write {NEW} again with one change: a docstring in double quotes that says what it does. Change nothing else.")
    old = agent.source("heapq.py", NEW)
    changed = replaced(old, "'Maxheap variant of _siftup'", '"""Maxheap variant of _siftup: down to a leaf, then up again."""')
    agent.call("edit_file", path="heapq.py", old="\n".join(old.splitlines()[:2]), new="\n".join(changed.splitlines()[:2]))
    agent.say(f"Done. The whole function:\n{code(changed)}")


SCRIPT = Script(
    name="heapq_rename",
    about="Renames a helper of heapq.py at its definition and in its callers, and quotes the result.",
    system="You edit Python code with tools. Replace as little as is needed, and read again what you have changed.",
    tools=("read_file", "grep", "edit_file", "run_python"),
    files=("heapq.py",),
    play=play,
)
