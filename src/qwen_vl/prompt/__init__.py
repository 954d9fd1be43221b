"""Prompts: list format, ChatML, messages. Text in, text and ids out; no torch, no files, no network."""
