"""Boxes in answers: parse, format, convert, draw and export them."""
