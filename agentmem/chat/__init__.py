"""From messages to the tokens that are new, and from tokens back to text and messages."""

from agentmem.chat.chat import Chat, ChatContext
from agentmem.chat.detokenizer import Detokenizer
from agentmem.chat.history import HistoryMatch, match_history

__all__ = ["Chat", "ChatContext", "Detokenizer", "HistoryMatch", "match_history"]
