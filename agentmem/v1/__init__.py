"""The wire format ``agentmem.v1``: generated protobuf code, and its conversion to and from agentmem's own records."""
