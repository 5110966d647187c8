"""The engine: the model, one step for all sessions, sampling, and who runs when."""
