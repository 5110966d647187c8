"""A large module is explored by searching, with long results."""

from __future__ import annotations

from agentmem.bench.scripts.player import Player, Script, code

PATH = "configparser.py"
PROBE = """import configparser
text = "[paths]\\nroot = srv\\ndata = %(root)s/data\\nlog = ${paths:root}/log\\nshare = 50%%\\n"
for kind in (configparser.BasicInterpolation, configparser.ExtendedInterpolation):
    parser = configparser.ConfigParser(interpolation=kind())
    parser.read_string(text)
    for option in parser["paths"]:
        print(kind.__name__, option, "=", parser["paths"][option])"""


def play(agent: Player) -> None:
    """Play the agent."""
    agent.user("How does configparser expand %(name)s in values? Find your way through configparser.py and explain it.")
    agent.call("grep", pattern=r"^class |_interpolation\.", path=PATH)
    agent.call("find_symbol", "BasicInterpolation is what ConfigParser uses. I look at its method.", name="_interpolate_some")
    agent.call("read_file", path=PATH, start=392, end=446)
    agent.say(
        "`get` hands the raw value to `before_get`, which collects pieces of text in a list. `_interpolate_some` copies up to the next "
        "percent sign; `%%` becomes one percent sign; `%(name)s` is looked up, and expanded in turn if it holds a percent sign; anything "
        "else is an InterpolationSyntaxError."
    )
    agent.user("Where is the depth limited? Quote the lines.")
    agent.call("grep", pattern="MAX_INTERPOLATION_DEPTH|depth", path=PATH)
    agent.say("The limit is 10. Each nested expansion passes depth + 1, and this stops it:\n" + code(agent.lines(PATH, 409, 411)))
    agent.user("And ExtendedInterpolation, with ${section:name}?")
    agent.call("read_file", path=PATH, start=453, end=520)
    agent.say(
        "It splits what is in the braces at colons. One part is an option of the same section, two are section and option:\n"
        + code(agent.lines(PATH, 491, 509))
    )
    agent.user("Show me on an example how the two differ.")
    agent.call("run_python", code=PROBE)
    agent.say(
        "BasicInterpolation expands `%(root)s` and makes `50%%` to `50%`, but leaves `${paths:root}` as it is. ExtendedInterpolation does "
        "the opposite: it expands `${paths:root}` and leaves the percent signs alone."
    )
    agent.user("What does get do with fallback? Read it and repeat its body from the try on.")
    agent.call("read_file", path=PATH, start=781, end=816)
    agent.say(code(agent.lines(PATH, 796, 816)))
    agent.user("Which errors can come out of all this?")
    agent.call("grep", pattern="raise ", path=PATH)
    agent.say(
        "From `get`: NoSectionError and NoOptionError, unless there is a fallback. From the expansion: InterpolationDepthError, "
        "InterpolationSyntaxError and InterpolationMissingOptionError. All are subclasses of configparser.Error."
    )


SCRIPT = Script(
    name="configparser_explore",
    about="Explores configparser.py by searching, explains interpolation and quotes what decides it.",
    system="You answer questions about a code base. Search before you read, read before you answer, and quote the lines that decide.",
    tools=("grep", "find_symbol", "read_file", "run_python"),
    files=("configparser.py",),
    play=play,
)
