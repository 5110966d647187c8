from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from agentmem.config import (
    ENV_PREFIX,
    KEYS,
    LogSettings,
    MemorySettings,
    ModelSettings,
    ServerSettings,
    Settings,
    StorageSettings,
    WorkersSettings,
    gather,
    load_settings,
)
from agentmem.errors import ConfigError
from agentmem.units import GIB, MIB


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_serve_a_local_model_on_loopback() -> None:
    """With nothing set: the packaged model, loopback, port 7070, 64-token blocks, 20 GiB of disk."""
    settings = load_settings(None, {}, {})
    assert Settings() == settings
    assert ("smollm2", "127.0.0.1", 7070, "auto", 64, 20 * GIB) == (
        settings.model.id,
        settings.server.host,
        settings.server.port,
        settings.memory.kv_bytes,
        settings.memory.block_tokens,
        settings.storage.disk_bytes,
    )


def test_each_source_overrides_the_one_before(tmp_path: Path) -> None:
    """File beats default, environment beats file, flag beats environment; a flag that was not given (None) beats nothing."""
    file = write(tmp_path / "agentmem.toml", '[server]\nport = 1\nhost = "::1"\ndrain_seconds = 3\n[memory]\nkv_bytes = "2GiB"\n')
    env = {"AGENTMEM_SERVER_PORT": "2", "AGENTMEM_SERVER_DRAIN_SECONDS": "4.5", "HOME": "/nowhere"}
    settings = load_settings(file, env, {"server.port": 3, "server.host": None})
    assert (3, "::1", 4.5, 2 * GIB) == (
        settings.server.port,
        settings.server.host,
        settings.server.drain_seconds,
        settings.memory.kv_bytes,
    )


def test_gather_names_the_source_of_each_value(tmp_path: Path) -> None:
    """The winner of each key is known with its source, so that `config show` can tell where a value comes from."""
    file = write(tmp_path / "a.toml", "[log]\nlevel = 'debug'\n")
    given = gather(file, {"AGENTMEM_API_KEYS": "keys"}, {"server.port": "9"})
    assert {"log.level": str(file), "server.api_keys": "AGENTMEM_API_KEYS", "server.port": "flag"} == {
        key: entry.source for key, entry in given.items()
    }


def test_text_of_every_type_is_parsed() -> None:
    """Environment and flags are text: numbers, booleans, sizes and paths are read from it."""
    settings = load_settings(
        None,
        {"AGENTMEM_STORAGE_KV_ARCHIVE": "off", "AGENTMEM_STORAGE_STATE_DIR": "~/x", "AGENTMEM_MEMORY_KV_BYTES": "512MiB"},
        {"storage.sweep": False, "memory.host_bytes": 5, "model.threads": "2", "server.resume_seconds": "1.5", "model.id": Path("m")},
    )
    assert (False, Path.home() / "x", 512 * MIB, False, 5, 2, 1.5, "m") == (
        settings.storage.kv_archive,
        settings.storage.state_dir,
        settings.memory.kv_bytes,
        settings.storage.sweep,
        settings.memory.host_bytes,
        settings.model.threads,
        settings.server.resume_seconds,
        settings.model.id,
    )


@pytest.mark.parametrize(
    ("env", "overrides", "message"),
    [
        ({"AGENTMEM_SERVER_PROT": "1"}, {}, "AGENTMEM_SERVER_PROT.*did you mean AGENTMEM_SERVER_PORT"),
        ({}, {"server.prot": 1}, "'server.prot' in a flag; did you mean 'server.port'"),
        ({}, {"server.port": "high"}, "server.port = 'high' .from flag."),
        ({}, {"server.port": 1.5}, "not a whole number"),
        ({}, {"server.port": True}, "not a whole number"),
        ({}, {"server.drain_seconds": True}, "not a number"),
        ({}, {"storage.sweep": "maybe"}, "not true or false"),
        ({}, {"model.id": 3}, "not a text"),
        ({}, {"memory.kv_bytes": "lots"}, "memory.kv_bytes = 'lots'.*is not a size"),
    ],
)
def test_wrong_keys_and_values_name_what_was_wrong(env: dict[str, str], overrides: dict[str, object], message: str) -> None:
    """An unknown key names the nearest one; a value that cannot be read names the key, the value and where it came from."""
    with pytest.raises(ConfigError, match=message):
        load_settings(None, env, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [("port = 1\n", "unknown setting 'port'"), ("[server]\nporrt = 1\n", "did you mean 'server.port'"), ("= 3", "not valid TOML")],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    """A file with an unknown key or bad TOML is refused with its own path in the message."""
    file = write(tmp_path / "agentmem.toml", text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings(file, {}, {})
    assert str(file) in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """A settings file that was asked for and is not there is not passed over."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_settings(tmp_path / "none.toml", {}, {})


def test_other_agentmem_variables_are_left_to_their_readers() -> None:
    """Variables of the fault injector and of the client commands are not settings and not errors."""
    assert Settings() == load_settings(None, {"AGENTMEM_FAULTS": "x", "AGENTMEM_TARGET": "y", "AGENTMEM_TOKEN": "z"}, {})


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (ModelSettings, {"id": ""}),
        (ModelSettings, {"dtype": "fp8"}),
        (ModelSettings, {"device": "tpu"}),
        (ModelSettings, {"threads": -1}),
        (ModelSettings, {"max_context": -1}),
        (ServerSettings, {"host": "0.0.0.0"}),
        (ServerSettings, {"port": 65536}),
        (ServerSettings, {"metrics_port": -1}),
        (ServerSettings, {"max_concurrent_streams": 0}),
        (ServerSettings, {"max_message_bytes": 2**31}),
        (ServerSettings, {"drain_seconds": -1.0}),
        (ServerSettings, {"default_deadline_seconds": 0.0}),
        (ServerSettings, {"resume_seconds": float("inf")}),
        (MemorySettings, {"kv_bytes": 5}),
        (MemorySettings, {"host_bytes": -1}),
        (MemorySettings, {"session_share": 0.0}),
        (MemorySettings, {"session_share": 1.01}),
        (MemorySettings, {"session_share": float("nan")}),
        (MemorySettings, {"block_tokens": 0}),
        (MemorySettings, {"max_batch_tokens": 0}),
        (MemorySettings, {"max_running": 0}),
        (MemorySettings, {"max_queue": 0}),
        (StorageSettings, {"disk_bytes": -1}),
        (StorageSettings, {"reap_seconds": 0.0}),
        (StorageSettings, {"archive_format": "fp8"}),
        (WorkersSettings, {"executor": ""}),
        (WorkersSettings, {"threads": 0}),
        (WorkersSettings, {"threads": 257}),
        (WorkersSettings, {"lease_seconds": 0.0}),
        (WorkersSettings, {"lease_seconds": float("nan")}),
        (WorkersSettings, {"max_attempts": 0}),
        (LogSettings, {"level": "loud"}),
        (LogSettings, {"format": "xml"}),
    ],
)
def test_values_out_of_range_name_the_key_and_what_is_allowed(section: type, values: dict[str, object]) -> None:
    """Each section checks itself, however it was built."""
    name = f"{section.__name__.removesuffix('Settings').lower()}.{next(iter(values))}"
    with pytest.raises(ConfigError, match=rf"{name} is .*; allowed: "):
        section(**values)


def test_any_host_may_be_served_with_tokens() -> None:
    """Beyond loopback a file of tokens is needed, and with one every host is allowed."""
    assert "0.0.0.0" == ServerSettings(host="0.0.0.0", api_keys="keys.txt").host


def test_every_setting_has_a_working_environment_variable() -> None:
    """Feeding each default back through its environment variable changes nothing."""
    env = {
        ENV_PREFIX + key.replace(".", "_").upper(): str(value)
        for key, value in ((key, getattr(getattr(Settings(), key.split(".")[0]), key.split(".")[1])) for key in KEYS)
    }
    assert Settings() == load_settings(None, env, {})


def test_as_dict_is_json() -> None:
    """Settings can be printed as JSON, section by section."""
    printed = json.loads(json.dumps(Settings().as_dict()))
    assert [item.name for item in dataclasses.fields(Settings)] == list(printed)
    assert str(Settings().storage.state_dir) == printed["storage"]["state_dir"]
