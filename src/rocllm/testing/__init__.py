"""Helpers for tests of rocllm, and of programs that are built on it."""
