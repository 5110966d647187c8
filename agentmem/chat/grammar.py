"""Constrained decoding: from what a reply may be to a grammar, compiled by llguidance (https://github.com/guidance-ai/llguidance)."""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher

from agentmem.chat.blame import blame
from agentmem.chat.call_grammar import MAX_CALLS, CallGrammar, Literals, call_schema
from agentmem.chat.call_shape import CallShape
from agentmem.chat.formats import FORMAT, format_error, format_grammar, json_grammar
from agentmem.chat.grammar_compiler import GrammarCompiler
from agentmem.chat.grammar_guide import GrammarGuide
from agentmem.chat.schemas import Owner, check_writable, tool_schema
from agentmem.errors import InvalidInput
from agentmem.output import FormatKind, OutputSpec, ToolMode
from agentmem.speculation.guide import Guide
from agentmem.types import ToolSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CACHED = 64  # compiled grammars of a model
MAX_SCHEMA_TEXT = 1_000_000  # characters of all tools' schemas together

Entry = dict[str, Any]  # one grammar of llguidance's list
Key = tuple[OutputSpec, tuple[ToolSpec, ...], CallShape]


class Grammar:
    """A compiled grammar. Immutable for its users, and thread safe."""

    def __init__(self, compiler: GrammarCompiler, text: str, first: LLMatcher) -> None:
        self._compiler = compiler
        self._text = text
        self._matcher: LLMatcher | None = first
        self._lock = threading.Lock()

    def guide(self) -> Guide:
        """Return a fresh state for one reply."""
        with self._lock:
            if self._matcher is None:
                self._matcher = self._compiler.matcher(self._text)
            matcher = self._matcher.deep_copy()
        return GrammarGuide(matcher, self._compiler.vocab_size, self._compiler.model_vocab, self._compiler.ends, self._drop)

    def _drop(self) -> None:
        # Copies of a matcher share its lexer's states, and so the error of having too many: the next reply starts with none.
        with self._lock:
            self._matcher = None


class Grammars:
    """The grammars of one model. Thread safe; the last ``MAX_CACHED`` that were compiled are kept.

    ``end_token_ids``: all tokens that end a reply. ``vocab_size``: how many logits the model has, which may be more than its tokenizer
    has tokens. The first grammar takes about a second longer, for the vocabulary.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_token_ids: Collection[int], vocab_size: int) -> None:
        self._compiler = GrammarCompiler(tokenizer, end_token_ids, vocab_size)
        self._cache: OrderedDict[Key, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, output: OutputSpec, tools: Sequence[ToolSpec], shape: CallShape) -> Grammar | None:
        """Return the grammar of replies that ``output`` allows, with calls of ``tools`` written in ``shape``; None if anything goes.

        Takes milliseconds, up to two seconds for the largest schemas; call it off the event loop. Raises InvalidInput for choices that
        contradict each other, and for a schema or grammar that can't be compiled, saying whose it is; ``metadata["path"]`` is the JSON
        path of the offending place. Raises NotImplementedYet for tokenizers that llguidance can't read.
        """
        _check_choice(output, tools)
        if not _constrains(output, tools, shape):
            return None
        key = (output, tuple(tools), shape)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        grammar = self._compile(output, tools, shape)
        with self._lock:
            self._cache[key] = grammar
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return grammar

    def _compile(self, output: OutputSpec, tools: Sequence[ToolSpec], shape: CallShape) -> Grammar:
        parts: dict[str, tuple[Owner, Entry]] = {}
        if output.response_format.kind is not FormatKind.TEXT:
            parts["format"] = FORMAT, format_grammar(output.response_format)
        called = _called(output, tools)
        if sum(len(tool.parameters) for _, tool in called) > MAX_SCHEMA_TEXT:
            raise InvalidInput(f"the tools' schemas have more than {MAX_SCHEMA_TEXT} characters together")
        for place, (index, tool) in enumerate(called):
            owner = Owner(f'tools[{index}] "{tool.name}"', tool.name)
            parts[f"args_{place}"] = owner, json_grammar(tool_schema(tool, owner))
        for owner, entry in parts.values():
            check_writable(entry.get("json_schema", {}), self._compiler.writes, owner)
        entries = {name: entry for name, (_, entry) in parts.items()}
        text = self._together(output, [tool.name for _, tool in called], shape, entries)
        matcher = self._compiler.matcher(text)
        problem = self._compiler.problem(matcher)
        if problem:
            # One part alone may say where; else they are too much together.
            causes = filter(None, (self._explain(owner, entry) for owner, entry in parts.values()))
            raise next(causes, None) or InvalidInput(f"the grammar of the tools and the response format can't be compiled: {problem}")
        return Grammar(self._compiler, text, matcher)

    def _together(self, output: OutputSpec, names: Sequence[str], shape: CallShape, parts: dict[str, Entry]) -> str:
        """Return llguidance's text of the grammar that ``parts`` are referred to from."""
        mode, many = output.tool_choice.mode, output.tool_choice.parallel and shape.parallel
        most = MAX_CALLS if many and mode is not ToolMode.NAMED else 1
        calls = CallGrammar(shape, names, Literals(self._compiler.special), self._compiler.ends.ids, most=most)
        if "format" in parts and not names:
            return json.dumps({"grammars": [parts["format"]]})
        whole = _whole_calls(shape, names, parts) if "format" in parts and most == 1 else None
        if whole:
            start, parts = f"start: {' | '.join(f'@{name}' for name in whole)}", whole
        elif "format" in parts:
            start = calls.format_or_calls()
        elif mode is ToolMode.AUTO:
            start = calls.text_or_calls()
        else:
            start = calls.calls_only() if names else calls.text_only()
        return json.dumps({"grammars": [{"lark_grammar": start}, *({"name": name, **entry} for name, entry in parts.items())]})

    def _explain(self, owner: Owner, entry: Entry) -> InvalidInput | None:
        """Return the error of one part of a grammar, None if it is fine alone."""
        matcher = self._compiler.matcher(json.dumps({"grammars": [entry]}))
        problem = self._compiler.problem(matcher)
        if not problem or "json_schema" not in entry:
            return format_error(problem) if problem else None
        schema = {key: value for key, value in entry["json_schema"].items() if key != "x-guidance"}
        path, message = blame(schema, lambda part: self._compiler.complaint(json.dumps({"grammars": [json_grammar(part)]})))
        return owner.error(path, message or problem)


def _check_choice(output: OutputSpec, tools: Sequence[ToolSpec]) -> None:
    """Raise InvalidInput when ``output`` contradicts itself or does not go with ``tools``."""
    choice, kind = output.tool_choice, output.response_format.kind
    twice = [name for name, count in Counter(tool.name for tool in tools).items() if count > 1]
    if twice:
        raise InvalidInput(f"tools have the name {twice[0]!r} more than once")
    if choice.mode not in (ToolMode.REQUIRED, ToolMode.NAMED):
        return
    if not tools:
        raise InvalidInput(f"tool_choice is {choice.mode}, but there are no tools")
    if kind is not FormatKind.TEXT:
        raise InvalidInput(
            f"tool_choice is {choice.mode} and response_format {kind}; allowed: one of them, since calls leave no text to format"
        )
    if choice.mode is ToolMode.NAMED and all(tool.name != choice.name for tool in tools):
        raise InvalidInput(f"tool_choice names {choice.name!r}; known: {', '.join(sorted(tool.name for tool in tools))}")


def _constrains(output: OutputSpec, tools: Sequence[ToolSpec], shape: CallShape) -> bool:
    if output.response_format.kind is not FormatKind.TEXT or output.tool_choice.mode in (ToolMode.REQUIRED, ToolMode.NAMED):
        return True
    return bool(tools) and bool(shape.open.strip())  # a call that nothing opens can't be told from text


def _whole_calls(shape: CallShape, names: Sequence[str], parts: dict[str, Entry]) -> dict[str, Entry] | None:
    """Return the format and calls as alternatives of one form, None where calls are opened by something or are no JSON.

    A literal start of a call would be one lexeme and, being the longer one, keep the lexer from reading other JSON's first brace.
    """
    if shape.open.strip() or shape.close:
        return None
    calls = {
        f"call_{place}": call_schema(
            shape, name, {key: value for key, value in parts[f"args_{place}"]["json_schema"].items() if key != "x-guidance"}
        )
        for place, name in enumerate(names)
    }
    whole = {key: json_grammar(schema) for key, schema in calls.items() if schema is not None}
    return {"format": parts["format"], **whole} if len(whole) == len(calls) else None


def _called(output: OutputSpec, tools: Sequence[ToolSpec]) -> list[tuple[int, ToolSpec]]:
    """Return the tools that the reply may call, with their places among all."""
    choice = output.tool_choice
    if choice.mode is ToolMode.NONE:
        return []
    return [(index, tool) for index, tool in enumerate(tools) if choice.mode is not ToolMode.NAMED or tool.name == choice.name]
