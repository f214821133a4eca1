"""The base's tokenizer, over text of at most 1 MiB in one request. In tests it makes a token of every byte."""

from ._host import host


def encode(text: str) -> list[int]:
    """The tokens of a text, as a prompt that is given as text has them."""
    return host().encode(text)


def decode(tokens: list[int]) -> str:
    """The text of tokens. What is no text by itself, such as half a character, becomes U+FFFD."""
    return host().decode(tokens)


def count(text: str) -> int:
    """How many tokens a text has."""
    return host().count(text)
