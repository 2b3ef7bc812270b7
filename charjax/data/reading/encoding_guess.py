"""The likeliest encoding of bytes that another one cannot decode, for the message about them."""

from __future__ import annotations

from collections import Counter

_MIN_BYTES = 16  # of a shorter text any guess would be chance
_MIN_FIT = 0.9  # of the bytes beyond ASCII must be UTF-8, or letters of one language

_ASCII = bytes(range(0x80))
# What languages of the Latin alphabet write beyond ASCII.
_PUNCTUATION = "\u00a0«»‹›“”„‘’‚–—…¿¡€£§°·•©®"  # noqa: RUF001
_WESTERN = (
    "",  # English
    "äöüß",  # German
    "àâæçéèêëîïôœùûü",  # French
    "áéíñóúüºª",  # Spanish
    "áàâãçéêíóôõúü",  # Portuguese
    "àèéìòù",  # Italian
    "àçèéíïòóúü",  # Catalan
    "áèéëïóöü",  # Dutch
    "åäöé",  # Swedish, Finnish
    "åæøéò",  # Danish, Norwegian
    "áæðéíóöþúý",  # Icelandic
)
_CENTRAL = (
    "ąćęłńóśźż",  # Polish
    "áčďéěíňóřšťúůýž",  # Czech
    "áäčďéíĺľňóôŕšťúýž",  # Slovak
    "áéíóöőúüű",  # Hungarian
    "čćđšž",  # Croatian, Slovene
    "ăâîșțşţ",  # Romanian
)
_TURKISH = ("âçğ\u0131i\u0307îöşü",)
_BALTIC = (
    "äõöüšž",  # Estonian
    "ąčęėįšųūž",  # Lithuanian
    "āčēģīķļņšūž",  # Latvian
)
# Of encodings that read the bytes equally well, the first is taken.
_LATIN = (
    ("cp1252", _WESTERN),
    ("cp1250", _CENTRAL),
    ("iso8859-2", _CENTRAL),
    ("cp1254", _TURKISH),
    ("cp1257", _BALTIC),
    ("cp850", _WESTERN),
)


def guess_encoding(data: bytes) -> str:
    """The likeliest encoding of some bytes; "" if none is likely."""
    from charset_normalizer import from_bytes

    if len(data) < _MIN_BYTES:
        return ""
    if likely := guess_utf16(data) or guess_utf8(data) or _guess_latin(data):
        return likely
    sample = data.lstrip(_ASCII)
    # The end of the bytes may part a character; the last newline does not.
    best = from_bytes(sample).best() or from_bytes(sample[: sample.rfind(b"\n")]).best()
    return best.encoding.replace("_", "-") if best else ""


def guess_utf16(data: bytes) -> str:
    """The UTF-16 of Latin text without byte order mark, recognised by its NULs; else ""."""
    even, odd = (data[i::2].count(0) for i in (0, 1))
    if len(data) < _MIN_BYTES or min(even, odd) or max(even, odd) < len(data) / 4:
        return ""
    return "utf-16-be" if even else "utf-16-le"


def guess_utf8(data: bytes) -> str:
    """UTF-8 if nearly all bytes beyond ASCII are; else ""."""
    others = len(data) - len(data.decode("utf-8", "ignore").encode())
    return "utf-8" if others <= (1 - _MIN_FIT) * len(data.translate(None, _ASCII)) else ""


def _guess_latin(data: bytes) -> str:
    """The encoding in which the characters beyond ASCII are those of one language; else ""."""
    counts = Counter(data.translate(None, _ASCII))

    def fit(encoding: str, letters: str) -> int:
        read = {byte: bytes([byte]).decode(encoding, "replace").lower() for byte in counts}
        return sum(counts[byte] for byte in counts if read[byte] in letters + _PUNCTUATION)

    fits = [(encoding, fit(encoding, a)) for encoding, alphabets in _LATIN for a in alphabets]
    best, most = max(fits, key=lambda candidate: candidate[1])
    return best if most >= _MIN_FIT * counts.total() else ""
