"""Processes that compress and index sealed turns."""
