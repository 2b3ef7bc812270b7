"""The encoding that a message names decodes the text as it was encoded."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from charjax.data.reading.decoding import CONFIG_PREFIX, decode
from charjax.data.sources.raw_text import RawText
from charjax.errors import InputError

WESTERN, CENTRAL = ("latin-1", "cp1252"), ("iso8859-2", "cp1250")
GREEK, RUSSIAN = ("cp1253", "iso8859-7"), ("cp1251", "koi8-r")
TEXTS = [
    (("cp1252",), "“It is late,” she said — and the café closed its doors for the night."),
    (WESTERN, "Die Bäckerin öffnete früh am Morgen ihren Laden in der Straße am Fluß."),
    (WESTERN, "À l'aube, la boulangère ouvrait déjà sa boutique, où les élèves riaient."),
    (WESTERN, "La señora Muñoz saludó a los niños. ¿Quién quiere un pastel de limón?"),
    (WESTERN, "As crianças não paravam de rir. Você não vê o avião e as eleições?"),
    (WESTERN, "Il sindaco arrivò più tardi e parlò della città. Perché è così forte?"),
    (WESTERN, "Barnen tryckte näsorna mot rutan när borgmästaren gick över ån."),
    (CENTRAL, "Mały sklep był w mieście. Źródło leżało w górach, gdzie żyły łosie."),
    (CENTRAL, "Děti tiskly nosy na sklo. Příliš žluťoučký kůň úpěl ďábelské ódy."),
    (CENTRAL, "A gyerekek az üveghez nyomták az orrukat. Árvíztűrő tükörfúrógép."),
    (("cp1254",), "Çocuklar üzüldü, çünkü hava çok soğuk geçiyordu; güneş göründü, İzmir."),
    (("cp1257",), "Vaikai stovėjo prie lango, žiema buvo šalta, įėjo aukštas žmogus."),
    (GREEK, "Νωρίς το πρωί η γυναίκα άνοιξε το μικρό της μαγαζί στην πόλη."),
    (RUSSIAN, "Рано утром булочница открыла свою маленькую лавку за ратушей."),
]
CASES = [(encoding, text) for encodings, text in TEXTS for encoding in encodings]
WIDE = [
    ("utf-16-le", "it was a dark and stormy night"),
    ("utf-16-be", "it was a dark and stormy night"),
    ("cp932", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 20),
    ("gb18030", "話說天下大勢。分久必合。合久必分。周末七國分爭。并入於秦。" * 20),
]


def message(data: bytes, encoding: str = "utf-8") -> str:
    with pytest.raises(InputError) as caught:
        "".join(decode(RawText("a.txt", [data]), encoding, CONFIG_PREFIX))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("before", [b"", b"ASCII at first. " * 20_000])
@pytest.mark.parametrize(("encoding", "text"), CASES)
def test_the_named_encoding_reads_the_text(encoding, text, before):
    data = before + text.encode(encoding)
    named = message(data).partition("encoding=")[2].partition(" ")[0]
    assert data.decode(named) == before.decode() + text


@pytest.mark.parametrize(("encoding", "text"), WIDE)
def test_encodings_of_several_bytes_a_character_are_named(encoding, text):
    assert f"config.data.encoding={encoding} " in message(text.encode(encoding), "ascii")


@pytest.mark.parametrize("encoding", ["cp932", "gb18030"])
@pytest.mark.parametrize("before", ["", "a"])
def test_a_character_that_ends_in_the_next_block_does_not_hide_the_encoding(encoding, before):
    text = before + f"{dict(WIDE)[encoding]}\n\n" * 200
    assert f"encoding={encoding} " in message(text.encode(encoding))


@given(st.binary(min_size=1, max_size=15))
def test_the_encoding_of_a_short_text_is_not_guessed(data):
    """Four letters of Latin-1 may be two of UTF-16."""
    assume(not data.isascii())
    assert "likeliest" not in message(data, "ascii")


@pytest.mark.parametrize("text", [text for _, text in TEXTS])
def test_a_text_in_utf8_but_for_a_byte_is_to_be_corrected(text):
    data = text.encode()
    for wrong in (data + b"\xe4" + data, data + "ö".encode()[:1]):  # the latter is cut off
        assert "the text around it is utf-8: correct the file" in message(wrong)
    assert "encoding=utf-8 " in message(data, "ascii")


@pytest.mark.parametrize(("encoding", "text"), CASES)
def test_a_text_in_utf8_that_is_read_as_another_is_noticed(encoding, text, caplog):
    for data, notices in ((text.encode(), 1), (text.encode(encoding), 0)):
        caplog.clear()
        with contextlib.suppress(InputError):  # not every byte is a character of each encoding
            "".join(decode(RawText("a.txt", [data]), encoding, CONFIG_PREFIX))
        assert len(caplog.messages) == notices
        assert all("a.txt: is read as" in text for text in caplog.messages)


@pytest.mark.parametrize("encoding", ["utf8", "utf-16-le", "UTF_16_BE", "windows-1252"])
def test_the_encoding_that_was_given_is_no_remedy(encoding):
    data = "Die Tür der Bäckerei quietschte früh; es gab süße Brötchen. ".encode(encoding) * 4
    assert "the text around it is " in message(data + b"\x81", encoding)


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("a.txt", "a text\n" * 100)
    else:
        formats = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}
        with tarfile.open(fileobj=file, mode="w", format=formats[kind]) as tar:
            tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (gzip.compress(b"a text\n" * 100), "rename it to end with .gz"),
        (lzma.compress(b"a text\n" * 100), "rename it to end with .xz"),
        (bz2.compress(b"a text\n" * 100), "rename it to end with .bz2"),
        (archive("zip"), "rename it to end with .zip"),
        (archive("pax"), "is a tar archive; unpack it"),
        (archive("gnu"), "is a tar archive; unpack it"),
        (b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n", "save its text as .txt"),
        (b"PAR1\x15\x04\x15\xc0", "`charjax pack --field=NAME`"),
    ],
    ids=["gz", "xz", "bz2", "zip", "tar of pax", "tar of gnu", "pdf", "parquet"],
)
def test_the_message_about_what_is_no_text_says_what_it_is(data, remedy):
    assert remedy in message(data)
