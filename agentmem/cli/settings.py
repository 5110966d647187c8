"""``agentmem config``: what is set, and where it comes from."""

from __future__ import annotations

import os

import typer

from agentmem.cli import options
from agentmem.cli.output import print_json, print_table
from agentmem.config import gather

app = typer.Typer(no_args_is_help=True, help="Look at the settings.")


@app.callback()
def config() -> None:
    """Look at the settings."""  # a callback keeps `show` a command of its own, although it is the only one


@app.command()
def show(config: options.Config = None, sets: options.Set = None, json_output: options.Json = False) -> None:
    """Print every setting, its value, and whether a file, the environment or a flag set it."""
    env = dict(os.environ)
    settings = options.settings_from(config, env, sets, {})
    sources = {key: given.source for key, given in gather(options.config_file(config), env, options.overrides(sets, {})).items()}
    rows = [
        (f"{section}.{name}", value, sources.get(f"{section}.{name}", "default"))
        for section, values in settings.as_dict().items()
        for name, value in values.items()
    ]
    if json_output:
        print_json({key: {"value": value, "source": source} for key, value, source in rows})
    else:
        print_table(("setting", "value", "from"), rows)
