"""Translate: bytes to records and back. What is spelled somewhere is spelled here, once."""
