"""``agentmem serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from agentmem.cli import options
from agentmem.cli.output import print_json
from agentmem.cli.progress import model_progress


def serve(
    config: options.Config = None,
    sets: options.Set = None,
    model: Annotated[str | None, typer.Option(help="smollm2, a model directory, a .gguf file or a hub id.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that torch may use; 0: its default.")] = None,
    max_context: Annotated[int | None, typer.Option(help="Most tokens of a session; 0: what the model was trained for.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; beyond loopback --api-keys is needed.")] = None,
    port: Annotated[int | None, typer.Option(help="0: any free port.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Serve Prometheus metrics there.")] = None,
    api_keys: Annotated[str | None, typer.Option(metavar="FILE", help="Lines `token tenant` or `token tenant admin`.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where sessions and blocks are kept.")] = None,
    kv_bytes: Annotated[str | None, typer.Option(help="Memory for K and V on the device, e.g. 4GiB, or auto.")] = None,
    disk_bytes: Annotated[str | None, typer.Option(help="Quota of blocks on disk, e.g. 20GiB.")] = None,
    json_output: options.Json = False,
) -> None:
    """Load a model and serve it until SIGTERM or Ctrl-C. Flags win over the environment, that over the settings file."""
    flags: dict[str, object] = {
        "model.id": model,
        "model.dtype": dtype,
        "model.device": device,
        "model.threads": threads,
        "model.max_context": max_context,
        "server.host": host,
        "server.port": port,
        "server.metrics_port": metrics_port,
        "server.api_keys": api_keys,
        "storage.state_dir": state_dir,
        "memory.kv_bytes": kv_bytes,
        "storage.disk_bytes": disk_bytes,
        "log.format": "json" if json_output else None,
    }
    settings = options.settings_from(config, dict(os.environ), sets, flags)
    from agentmem import app  # loads torch

    def on_ready(address: str) -> None:
        if json_output:
            print_json({"address": address})
        else:
            typer.echo(f"agentmem serves {settings.model.id} on {address}")

    with model_progress() as progress:
        app.serve(settings, on_ready, progress)
