"""From messages to the tokens that are new, and from tokens back to text, messages and tool calls; and grammars for what a reply may be."""

from agentmem.chat.calls import CallStream
from agentmem.chat.chat import Chat, ChatContext
from agentmem.chat.detokenizer import Detokenizer
from agentmem.chat.history import HistoryMatch, match_history
from agentmem.chat.reply_parts import ParsedReply, Piece

__all__ = ["CallStream", "Chat", "ChatContext", "Detokenizer", "HistoryMatch", "ParsedReply", "Piece", "match_history"]
