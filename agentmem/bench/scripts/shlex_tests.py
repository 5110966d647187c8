"""A small test is written and run; one expectation is wrong and is put right; the file is written again with one more test."""

from __future__ import annotations

from agentmem.bench.scripts.player import Player, Script, code, replaced

TESTS = """import shlex
import unittest


class QuoteTest(unittest.TestCase):

    def test_safe_words_stay_as_they_are(self):
        for word in ("file.txt", "a-b_c", "user@host:dir/file", "50%"):
            self.assertEqual(shlex.quote(word), word)

    def test_nothing_is_quoted_too(self):
        self.assertEqual(shlex.quote(""), "")

    def test_a_space_needs_quotes(self):
        self.assertEqual(shlex.quote("my file"), "'my file'")

    def test_a_single_quote_is_put_in_double_quotes(self):
        self.assertEqual(shlex.quote("it's"), "'it'\\"'\\"'s'")
"""
WRONG, RIGHT = 'shlex.quote(""), "")', 'shlex.quote(""), "\'\'")'
ROUND_TRIP = """
    def test_split_undoes_join(self):
        words = ["cp", "my file", "it's", "", "$HOME"]
        self.assertEqual(shlex.split(shlex.join(words)), words)
"""
PATH = "tests/test_quote.py"


def play(agent: Player) -> None:
    """Play the agent."""
    agent.user("Write a small test for shlex.quote into tests/test_quote.py and run it. See first what there is.")
    agent.call("list_files", directory=".")
    agent.call("grep", pattern="quote", path="shlex.py")
    agent.call("read_file", path="shlex.py", start=305, end=334)
    agent.call("write_file", path=PATH, content=TESTS)
    agent.call("run_tests", path=PATH)
    old = "\n".join(TESTS.splitlines()[10:12])
    agent.call(
        "edit_file",
        "The empty string becomes two quotes, as the source says. My expectation was wrong.",
        path=PATH,
        old=old,
        new=replaced(old, WRONG, RIGHT),
    )
    agent.call("run_tests", path=PATH)
    agent.say("tests/test_quote.py has four tests of `shlex.quote` and all pass. The empty string is quoted as two single quotes.")
    agent.user("Print the whole test file so that I can paste it into the review.")
    agent.call("read_file", path=PATH, start=1, end=60)
    agent.say(code(replaced(TESTS, WRONG, RIGHT).rstrip()))
    agent.user("Add a test that split undoes join. Write the whole file again.")
    agent.call("write_file", path=PATH, content=replaced(TESTS, WRONG, RIGHT) + ROUND_TRIP)
    agent.call("run_tests", path=PATH)
    agent.say("All five tests pass.")
    agent.user("How does split take a word apart? Read the state machine in read_token and tell me which states there are.")
    agent.call("find_symbol", name="read_token")
    agent.call("read_file", path="shlex.py", start=133, end=252)
    agent.say(
        "`self.state` is None at the end of the input, a space between words, a quote character inside quotes, an escape character "
        "right after one, and 'a' or 'c' inside a word or a run of punctuation. Inside quotes it goes on like this:\n"
        + code(agent.lines("shlex.py", 185, 204))
    )


SCRIPT = Script(
    name="shlex_tests",
    about="Writes a test file for shlex.quote, corrects a wrong expectation, and writes the file again with one more test.",
    system="You write tests for Python modules. Keep them short, one expectation each, and run what you write.",
    tools=("list_files", "read_file", "grep", "find_symbol", "edit_file", "write_file", "run_tests"),
    files=("shlex.py", "fnmatch.py", "string.py", "reprlib.py"),
    play=play,
)
