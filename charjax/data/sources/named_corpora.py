"""Named corpora: finds their files on this machine, or downloads them."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from charjax.data.sources.download import fetch
from charjax.data.sources.files import texts_in_file
from charjax.data.sources.raw_text import RawText
from charjax.data.sources.transfer import RemoteFile
from charjax.errors import HostError, InputError
from charjax.runtime.cache import cache_folder
from charjax.runtime.display import ProgressFn, no_progress

BUILT_IN = "python_docs"  # the language reference that comes with CPython

_logger = logging.getLogger(__name__)


class CorpusUnavailableError(HostError):
    """A named corpus can be neither found nor downloaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source(RemoteFile):
    """A file that holds a named corpus, perhaps in a zip archive; without `url`: no download."""

    file: str  # its name in a data folder
    notice: str = ""  # a warning to the user if this file is used


_AG_NEWS = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv"

# The files of each corpus, the preferred one first.
NAMED: dict[str, tuple[Source, ...]] = {
    "shakespeare": (
        Source(
            file="shakespeare.txt",
            url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            max_bytes=1_115_394,
        ),
    ),
    "nietzsche": (
        Source(
            file="nietzsche.txt",
            url="https://s3.amazonaws.com/text-datasets/nietzsche.txt",
            min_bytes=600_901,
            max_bytes=600_901,
        ),
    ),
    "grimm": (
        Source(
            file="grimm.txt",
            url="https://www.gutenberg.org/cache/epub/11027/pg11027.txt",
            min_bytes=200_000,
            max_bytes=1_000_000,
        ),
    ),
    "ag_news": (
        Source(
            file="ag_news_train.csv",
            url=f"{_AG_NEWS}/train.csv",
            sha256="76a0a2d2f92b286371fe4d4044640910a04a803fdd2538e0f3f29a5c6f6b672e",
            max_bytes=29_470_338,
        ),
        Source(
            file="ag_news_test.csv",
            url=f"{_AG_NEWS}/test.csv",
            sha256="521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",
            max_bytes=1_857_427,
            notice="ag_news is its test part (ag_news_test.csv): the train part can be "
            "neither found nor downloaded",
        ),
    ),
    "enwik8": (
        Source(
            file="enwik8",
            sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
            max_bytes=100_000_000,
        ),
        Source(
            file="enwik8.zip",
            url="http://mattmahoney.net/dc/enwik8.zip",
            sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            max_bytes=36_445_475,
        ),
    ),
    "text8": (
        Source(file="text8", max_bytes=100_000_000),
        Source(
            file="text8.zip",
            url="http://mattmahoney.net/dc/text8.zip",
            sha256="a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
            max_bytes=50_000_000,
        ),
    ),
}


def check_name(name: str, field: str) -> None:
    """Raises InputError if there is no corpus of this name, which `field` of the config gave."""
    if name != BUILT_IN and name not in NAMED:
        names = ", ".join((*NAMED, BUILT_IN))
        raise InputError(
            f"{field}={name!r}: no such corpus; there are {names}; "
            "or set config.data.path to a file of your own"
        )


def is_downloaded(name: str) -> bool:
    """Whether `read_named` would download nothing, since it finds the file that it tries first."""
    tried = (_find(source) for source in NAMED.get(name, ()) if source.url or _find(source))
    return name == BUILT_IN or next(tried, None) is not None


def read_named(name: str, *, progress: ProgressFn = no_progress) -> RawText:
    """Reads a named corpus from `$CHARJAX_DATA_DIR` or the cache, or downloads it to the cache.

    If no digest was published, that of the first download is recorded beside the file, and later
    downloads must have the same one.

    Raises:
      CorpusUnavailableError: it can be neither found nor downloaded.
      HostError: a file was found, but cannot be read.
    """
    if name == BUILT_IN:
        return _built_in()
    errors = []
    for source in NAMED[name]:
        path = _find(source)
        if path is None and source.url:
            path = _folders()[-1] / source.file
            try:
                _download(source, path, progress)
            except HostError as error:
                errors.append(error)
                continue
        if path is not None:
            return _read(path, source)
    places = " or ".join(str(folder) for folder in _folders())
    raise CorpusUnavailableError(f"corpus {name!r} is not in {places}; {errors[0]}")


def _download(source: Source, path: Path, progress: ProgressFn) -> None:
    _logger.info("downloading %s to %s", source.url, path)
    expected = source.sha256 or _recorded_digest(path)
    try:
        fetch(replace(source, sha256=expected), path, progress=progress)
    except HostError as error:
        if source.sha256 or not expected:
            raise
        raise HostError(
            f"{error}; the expected digest is that of the first download: if the publisher has "
            f"changed the file, delete {_record_of(path)}"
        ) from error
    if not expected:
        digest = _digest(path)
        _record_of(path).write_text(f"{digest}\n")
        _logger.info("%s has no published digest; recorded its SHA-256, %s", path.name, digest)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_of(path: Path) -> Path:
    """The file that records the digest of the first download of `path`."""
    return path.with_name(f"{path.name}.sha256")


def _recorded_digest(path: Path) -> str:
    """The digest of the first download of `path`; "" if none is recorded."""
    try:
        recorded = _record_of(path).read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
    return recorded if re.fullmatch("[0-9a-f]{64}", recorded) else ""


def _folders() -> list[Path]:
    """The folders where data files are looked for; downloads go to the last one, the cache."""
    folders = [cache_folder("data")]
    if given := os.environ.get("CHARJAX_DATA_DIR"):
        folders.insert(0, Path(os.path.expanduser(given)))
    return folders


def _find(source: Source) -> Path | None:
    paths = [folder / source.file for folder in _folders()]
    return next((path for path in paths if os.path.isfile(path)), None)


def _read(path: Path, source: Source) -> RawText:
    try:
        texts = texts_in_file(str(path), "config.data.corpus")
        data = b"".join(block for text in texts for block in text.blocks)
    except InputError as error:
        raise HostError(f"{error}; or delete the file") from error
    notices = [source.notice] if source.notice else []
    digest, expected = _digest(path), source.sha256 or _recorded_digest(path)
    if expected and digest != expected:
        problem = (
            "is not the published file" if source.sha256 else "has changed since it was downloaded"
        )
        notices.append(f"{path.name} {problem}: its SHA-256 is {digest}")
    return RawText(str(path), (data,), tuple(notices))


def _built_in() -> RawText:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise CorpusUnavailableError(
            f"corpus {BUILT_IN!r}: this Python has no module pydoc_data; set config.data.path=FILE"
        ) from error
    text = "\n".join(topics[name] for name in sorted(topics))
    return RawText(BUILT_IN, (text.encode("utf-8"),))
