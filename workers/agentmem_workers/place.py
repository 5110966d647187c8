"""What a worker has to know of the replica whose blocks it reads, as text that the metadata store keeps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

from agentmem import __version__
from agentmem.errors import ConfigError, InvalidInput
from agentmem.stores.mapped import ArchiveFormat
from agentmem.stores.records import BlockHeader


@dataclass(frozen=True, slots=True)
class Place:
    """A replica's block files and rules of work. ``header`` describes its blocks; the other fields are as in the settings."""

    header: BlockHeader
    archive_format: ArchiveFormat
    lease_seconds: float
    max_attempts: int
    version: str = __version__

    def to_text(self) -> str:
        """Return the place as JSON; equal places give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read ``to_text``. Raises ConfigError for another version of agentmem and for what is no place."""
        try:
            values: dict[str, Any] = json.loads(text)
            version = values["version"]
            # Only the same version is sure to mean the same by these fields, and by what lies in the files.
            if version == __version__:
                header = BlockHeader(**values.pop("header"))
                return cls(header=header, archive_format=ArchiveFormat(values.pop("archive_format")), **values)
        except (AttributeError, KeyError, TypeError, ValueError, InvalidInput) as error:
            raise ConfigError(f"what the server wrote for its workers cannot be read: {error}") from error
        raise ConfigError(f"the server runs agentmem {version}, this worker {__version__}; run both from one installation")
