"""What the agents of the recorded traces do, one file each."""

from agentmem.bench.scripts import (
    configparser_explore,
    csv_statistics,
    fnmatch_rewrite,
    heapq_rename,
    json_verbatim,
    settings_json,
    shlex_tests,
    textwrap_bug,
)

SCRIPTS = (
    configparser_explore.SCRIPT,
    csv_statistics.SCRIPT,
    fnmatch_rewrite.SCRIPT,
    heapq_rename.SCRIPT,
    json_verbatim.SCRIPT,
    settings_json.SCRIPT,
    shlex_tests.SCRIPT,
    textwrap_bug.SCRIPT,
)
