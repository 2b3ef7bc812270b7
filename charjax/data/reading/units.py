"""What a token of a text is: a code point, or a byte, as the character that stands for it."""

from __future__ import annotations

from charjax.errors import InputError


def bytes_to_text(data: bytes) -> str:
    """Represents bytes as a str: byte b becomes the character of code point b (latin-1).

    With `data.unit=byte` a token is a byte, and texts and vocabularies hold these characters, so
    that both units use the same code.
    """
    return data.decode("latin-1")


def text_of_unit(text: str, unit: str) -> str:
    """The text with one character a token: with unit "byte", `bytes_to_text` of its UTF-8."""
    return bytes_to_text(text.encode("utf-8")) if unit == "byte" else text


def check_text(text: str) -> None:
    """Raises InputError for what is no str, and for half of a surrogate pair, which UTF-8 lacks."""
    if not isinstance(text, str):
        raise InputError(f"a text of type {type(text).__name__}: must be a str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {error.start} of the text is U+{ord(text[error.start]):04X}, half of a "
            "surrogate pair: the text was not valid UTF-8; correct its encoding"
        ) from error
