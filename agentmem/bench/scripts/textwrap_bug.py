"""A bug hunt: two tests fail, the cause is found and mended, a test is added."""

from __future__ import annotations

from agentmem.bench.scripts.player import Player, Script, code, replaced

TESTS = """import textwrap
import unittest


class WrapTest(unittest.TestCase):

    def test_short_text_is_one_line(self):
        self.assertEqual(textwrap.wrap("to be", width=20), ["to be"])

    def test_a_line_may_be_as_long_as_width(self):
        self.assertEqual(textwrap.wrap("to be or not", width=5), ["to be", "or", "not"])

    def test_shorten_keeps_what_fits(self):
        self.assertEqual(textwrap.shorten("to be or not", width=12), "to be or not")

    def test_indent_marks_every_line(self):
        self.assertEqual(textwrap.indent("to\\nbe\\n", "> "), "> to\\n> be\\n")


if __name__ == "__main__":
    unittest.main()
"""
NEW_TEST = """    def test_two_full_lines(self):
        self.assertEqual(textwrap.wrap("aaaa bbbb cccc dddd", width=9), ["aaaa bbbb", "cccc dddd"])
"""
PROBE = """import textwrap
for width in (8, 9, 10, 11):
    lines = textwrap.wrap("aaaa bbbb cccc dddd", width=width)
    print(width, max(map(len, lines)), lines)"""
WRONG, RIGHT = "if cur_len + l < width:", "if cur_len + l <= width:"


def play(agent: Player) -> None:
    """Play the agent."""
    agent.plant("textwrap.py", RIGHT, WRONG)
    agent.give("tests/test_wrap.py", TESTS)
    agent.user("Since the last change to textwrap.py two tests in tests/test_wrap.py fail. Find the bug and fix it. Run the tests first.")
    agent.call("run_tests", path="tests/test_wrap.py")
    agent.call("run_python", "Lines come out too short. I look at which widths are affected.", code=PROBE)
    agent.call("find_symbol", "A line is broken one character too early. The lines are put together in _wrap_chunks.", name="_wrap_chunks")
    agent.call("read_file", path="textwrap.py", start=238, end=339)
    edited = agent.lines("textwrap.py", 287, 293)
    agent.call(
        "edit_file",
        "The comparison should let a chunk through that fills the line exactly.",
        path="textwrap.py",
        old=edited,
        new=replaced(edited, WRONG, RIGHT),
    )
    agent.call("run_tests", path="tests/test_wrap.py")
    agent.say(f"All four tests pass. In `_wrap_chunks` a chunk that filled the line exactly was refused: `{WRONG}` is now `{RIGHT}`.")
    agent.user("Quote the loop over the chunks as it is now, from `while chunks:` to the break.")
    agent.say(code(agent.lines("textwrap.py", 287, 297)))
    agent.user("Good. Add a test for two lines that are both full, at the end of the class, and run the tests again.")
    agent.call("read_file", path="tests/test_wrap.py", start=1, end=40)
    last = agent.lines("tests/test_wrap.py", 16, 17) + "\n"
    agent.call("edit_file", path="tests/test_wrap.py", old=last, new=f"{last}\n{NEW_TEST}")
    agent.call("run_tests", path="tests/test_wrap.py")
    agent.say("The new test passes, as do the four others.")
    agent.user("Show me the whole class for the review.")
    agent.say(code(agent.source("tests/test_wrap.py", "WrapTest")))
    agent.user("And is `_handle_long_word` affected by the same mistake?")
    agent.call("read_file", path="textwrap.py", start=198, end=236)
    agent.say(
        "No. It only runs for a chunk that is longer than the whole line: it cuts `space_left = width - cur_len` characters off, "
        "which may fill the line exactly. The lines that decide it:\n" + code(agent.lines("textwrap.py", 207, 224))
    )


SCRIPT = Script(
    name="textwrap_bug",
    about="Finds why two tests fail, mends one comparison in textwrap.py and adds a test.",
    system="You are a careful programmer. Use the tools to look before you change anything, and run the tests after each change.",
    tools=("read_file", "find_symbol", "edit_file", "run_python", "run_tests"),
    files=("textwrap.py",),
    play=play,
)
