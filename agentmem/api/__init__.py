"""The gRPC surface: servicers, the stages that every call passes, and the server."""
