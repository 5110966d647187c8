"""The formats of tool calls that are known; importing a format's file files it in the table."""

from __future__ import annotations

from agentmem.chat import hermes, llama3, mistral
from agentmem.chat.tools import TOOL_FORMATS, ToolFormat

__all__ = ["TOOL_FORMATS", "ToolFormat", "hermes", "llama3", "mistral"]
