"""Random protobuf messages of any type: well-formed on the wire, absurd in what they say."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-1, 12),
}
_MAX_REPEATED = 3


def messages(descriptor: Descriptor, fixed: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Message]:
    """Return a strategy of messages of the type ``descriptor``; fields named in ``fixed``, at any depth, take their values from there."""
    fields = {field.name: _field(field, fixed) for field in descriptor.fields}
    always = {name: strategy for name, strategy in fields.items() if name in fixed}
    sometimes = {name: strategy for name, strategy in fields.items() if name not in fixed}
    return st.fixed_dictionaries(always, optional=sometimes).map(lambda values: GetMessageClass(descriptor)(**values))


def _field(field: FieldDescriptor, fixed: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    if field.name in fixed:
        return fixed[field.name]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=_MAX_REPEATED)
    single = _value(field, fixed)
    return st.lists(single, max_size=_MAX_REPEATED) if field.is_repeated else single


def _value(field: FieldDescriptor, fixed: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return messages(field.message_type, fixed)
    if kind in _INTEGERS:
        return st.one_of(st.integers(-1, 9).filter(lambda n: n >= _INTEGERS[kind][0]), st.integers(*_INTEGERS[kind]))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.floats()
    return st.binary(max_size=40) if field.type == FieldDescriptor.TYPE_BYTES else st.text(max_size=40)
