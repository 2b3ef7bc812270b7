"""The page at `/`: what it may load, and, in Chromium, writing with a served model.

The slow tests need `pip install playwright axe-playwright-python`, and Debian's chromium.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from charjax.cli.main import main
from charjax.config import Config, DataConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig
from charjax.export.files import template
from charjax.inference.load import BUILTIN
from charjax.serve.page import PAGE, PAGE_HEADERS
from tests.browser import browser, watched_page
from tests.faults.trial import write_config
from tests.serve.asgi import post
from tests.serve.process import serve

__all__ = ["browser"]

LINE = "the cat sat on a mat and saw some tea, and drank it up at once\n"
HOSTILE = "<script>alert(1)</script> & \x1b[31m"
TEXT = LINE * 80 + f"{HOSTILE}\r\n" * 2
CONFIG = Config(
    data=DataConfig(batch_size=8, seq_len=32),
    model=ModelConfig(cell="gru", hidden=48, embed=16, dropout=0.0),
    optim=OptimConfig(learning_rate=0.01),
    train=TrainConfig(max_steps=400, eval_every=400, log_every=400),
    sample=SampleConfig(num_chars=0),
)


def test_the_page_is_one_document_that_asks_this_server_alone():
    page, policy = PAGE.decode(), PAGE_HEADERS["Content-Security-Policy"]
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert not re.search(r'\son[a-z]+="', page), "an inline handler, which the policy forbids"
    assert "unsafe" not in policy
    for part in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"):
        assert part in policy


PIECES = """
const choices = JSON.parse(require("fs").readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(choices.flatMap(choicePieces)));
"""


def pieces_on_the_page(choices: list[dict]) -> list[dict]:
    """What the page makes of choices of the protocol, in node."""
    scripts = [template(name) for name in ("parts.js", "write.js", "remote.js")]
    command = ["node", "-e", "\n".join([*scripts, PIECES])]
    done = subprocess.run(command, input=json.dumps(choices), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node")
@pytest.mark.parametrize("length", [31, 33, 34])
def test_the_page_shows_a_text_of_bytes_character_by_character(app, length):
    body = {"model": "bytes", "prompt": "é", "max_tokens": length, "logprobs": 6, "stream": True}
    body |= {"logit_bias": {"0": 45}, "temperature": 3, "seed": 1}  # not all bytes are characters
    events = post(app, "/v1/completions", body).events
    choices = [choice for event in events for choice in event["choices"]]
    pieces = pieces_on_the_page(choices)
    text = "".join(choice["text"] for choice in choices)
    assert [piece["text"] for piece in pieces] == [*text]
    nats = -sum(sum(choice["logprobs"]["token_logprobs"]) for choice in choices)
    assert sum(piece["nats"] for piece in pieces) == pytest.approx(nats)


class Opened(NamedTuple):
    """The page of a server: its requests, and its messages and errors."""

    page: object
    requests: list[str]
    messages: list[str]

    def button(self, name: str):
        return self.page.get_by_role("button", name=name, exact=True)

    def text(self) -> str:
        return self.page.locator("#text").text_content()

    def wait(self, words: str) -> None:
        self.page.get_by_role("status").filter(has_text=words).wait_for()

    def fill(self, **fields) -> None:
        labels = {"top_p": "Top-p", "min_p": "Min-p"}
        for name, value in fields.items():
            label = labels.get(name, name.capitalize())
            self.page.get_by_label(label, exact=name == "seed").fill(str(value))

    def write(self, **fields) -> str:
        """The text that is written with these settings."""
        self.fill(**fields)
        self.button("Write").click()
        self.wait(f"{fields['characters']} characters")
        return self.text()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run that has learned a line by heart."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8", newline="")
    file = write_config(folder / "tiny.py", CONFIG)
    flags = [f"--config={file}", f"--config.data.path={folder}/text.txt"]
    assert main(["train", *flags, f"--workdir={folder}/run"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def url(run_folder):
    with serve(f"--workdir={run_folder}", timeout=30) as served:
        yield served.url


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., Opened]]:
    """Opens an address in a browser of its own."""
    contexts = []

    def open_page(url: str, **options) -> Opened:
        contexts.append(browser.new_context(**options))
        opened = Opened(*watched_page(contexts[-1]))
        opened.page.goto(url)
        return opened

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def opened(open_page, url):
    """The page; at the end nothing was logged and nothing asked beyond the server."""
    opened = open_page(url, permissions=["clipboard-read", "clipboard-write"])
    opened.page.get_by_text("nats per character").wait_for()
    yield opened
    hosts = {urlsplit(request).netloc for request in opened.requests if request[:5] != "blob:"}
    assert hosts == {urlsplit(url).netloc}
    assert opened.messages == []


def sampled(run_folder, capfd, prompt: str, *flags: str) -> str:
    arguments = [f"--workdir={run_folder}", f"--prompt={prompt}", *flags]
    capfd.readouterr()
    assert main(["sample", *arguments]) == 0
    return capfd.readouterr().out


@pytest.mark.slow
def test_the_text_is_that_of_the_command_and_comes_again(opened, run_folder, capfd):
    text = opened.write(prompt="the cat", temperature=2, characters=200, seed=5)
    flags = ("--temperature=2", "--num_chars=200", "--seed=5")
    assert text == sampled(run_folder, capfd, "the cat", *flags)
    opened.button("Regenerate").click()
    opened.wait("200 characters")
    assert opened.text() == text
    classes = opened.page.locator("#text span").evaluate_all("all => all.map(s => s.className)")
    assert {"s1", "s5"} <= {name.split()[0] for name in classes}
    opened.page.get_by_label("Colour by surprise").uncheck()
    assert opened.page.locator("#text.coloured").count() == 0
    again = opened.write(prompt="the cat", temperature=2, characters=200, seed=6)
    assert again != text
    filtered = opened.write(
        prompt="the", temperature=2, min_p=0.2, top_p=0.9, characters=90, seed=1
    )
    flags = ("--temperature=2", "--min_p=0.2", "--top_p=0.9", "--num_chars=90", "--seed=1")
    assert filtered == sampled(run_folder, capfd, "the", *flags)


@pytest.mark.slow
def test_a_long_text_stops_and_goes_on(opened):
    opened.fill(prompt="the", characters=100_000, seed=1)
    opened.button("Write").press("Enter")
    opened.page.locator("#text span").nth(50).wait_for()
    opened.page.keyboard.press("Escape")
    opened.wait("Stopped")
    text = opened.text()
    assert 50 < len(text) < 90_000
    opened.fill(characters=20)
    opened.button("Continue").click()
    opened.wait("20 characters")
    assert opened.text().startswith(text)
    assert len(opened.text()) == len(text) + 20


@pytest.mark.slow
def test_alternatives_stand_side_by_side_and_one_is_kept(opened, run_folder, capfd):
    opened.fill(prompt="the cat", temperature=2, characters=60, alternatives=3, seed=2)
    opened.button("Write").click()
    opened.wait("180 characters")
    columns = opened.page.locator(".alternative").all_text_contents()
    flags = ("--temperature=2", "--num_chars=60", "--seed=2", "--num_samples=3", "--no_prompt")
    assert columns == sampled(run_folder, capfd, "the cat", *flags).split("\n=====\n")
    opened.button("Keep 2").click()
    assert opened.text() == "the cat" + columns[1]
    assert opened.page.locator(".alternative").count() == 0


@pytest.mark.slow
def test_another_character_is_chosen_by_keyboard_and_the_text_goes_on_from_it(opened):
    text = opened.write(prompt="the", temperature=1.2, characters=50, seed=3)
    opened.page.locator("#text").focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowLeft"):
        opened.page.keyboard.press(key)
    assert opened.page.locator("#text span.selected").text_content() == text[4]
    others = opened.page.locator(".likeliest li")
    assert others.count() == 5
    assert re.search(r"%, \d+\.\d\d nats", opened.page.locator("#character").text_content())
    names = opened.page.locator(".likeliest button").all_text_contents()
    other = next(name for name in names if len(name) == 1)
    opened.button(other).focus()
    opened.page.keyboard.press("Enter")
    opened.wait("50 characters")
    assert opened.text()[:5] == text[:4] + other != text[:5]
    assert len(opened.text()) == 55


@pytest.mark.slow
def test_a_passage_of_the_training_text_is_underlined(opened):
    text = opened.write(prompt="the cat", temperature=0, characters=100, seed=0)
    opened.page.get_by_text("in the training text, underlined").wait_for()
    copied = "".join(opened.page.locator("#text .copied").all_text_contents())
    assert len(copied) >= 40
    assert copied in text
    assert copied in TEXT


@pytest.mark.slow
def test_a_link_opens_the_same_text_in_a_new_window_and_the_text_is_saved(opened, tmp_path):
    text = opened.write(prompt="the & cat", temperature=1.1, characters=80, seed=7)
    opened.button("Copy link").click()
    opened.wait("copied")
    link = opened.page.evaluate("navigator.clipboard.readText()")
    assert "seed=7" in link
    other = Opened(*watched_page(opened.page.context))
    other.page.goto(link)
    other.wait("80 characters")
    assert other.text() == text
    assert other.page.get_by_label("Temperature").input_value() == "1.1"
    assert other.messages == []
    with opened.page.expect_download() as download:
        opened.button("Save text").click()
    download.value.save_as(tmp_path / "saved.txt")
    assert (tmp_path / "saved.txt").read_bytes() == text.encode()


@pytest.mark.slow
def test_a_link_to_another_model_opens_with_the_description_of_that_model(open_page, run_folder):
    with serve(f"--workdir={run_folder}", f"--workdir={BUILTIN}", timeout=30) as served:
        opened = open_page(f"{served.url}/#prompt=the&model=builtin&count=20&seed=1")
        opened.wait("20 characters")
        assert opened.page.title() == "Write with builtin"


@pytest.mark.slow
def test_a_link_that_cannot_be_followed_says_so(opened, url):
    for wrong in ("model=gone", "temperature=7"):
        opened.page.goto(f"{url}/#prompt=the&count=20&seed=1&{wrong}")
        opened.page.reload()
        opened.page.get_by_role("alert").filter(has_text=wrong).wait_for()
        assert opened.text() == ""


@pytest.mark.slow
def test_a_link_that_is_opened_while_a_text_is_written_is_followed(opened, url):
    opened.page.goto(f"{url}/#prompt=the&count=100000&seed=1")
    opened.page.locator("#text span").nth(50).wait_for()
    opened.page.goto(f"{url}/#prompt=a%0D%0Acat&count=20&seed=1")
    opened.wait("20 characters")
    assert opened.text().startswith("a\r\ncat")


@pytest.mark.slow
def test_settings_that_are_not_valid_write_nothing(opened):
    text = opened.write(prompt="the cat", temperature=1.2, characters=20, seed=1)
    opened.page.locator("#text span").nth(3).click()
    opened.fill(characters="")
    for button in (opened.page.locator(".likeliest button").first, opened.button("Continue")):
        button.click()
        assert opened.text() == text
    assert opened.page.evaluate_handle("document.activeElement").get_attribute("id") == "count"


@pytest.mark.slow
def test_the_page_shows_the_settings_that_the_browser_restores(opened):
    opened.fill(temperature=1.5)
    opened.page.get_by_label("Colour by surprise").uncheck()
    opened.page.goto("about:blank")
    opened.page.go_back()
    opened.page.get_by_text("nats per character").wait_for()
    value = opened.page.get_by_label("Temperature").input_value()
    assert float(opened.page.locator("#temperature-value").text_content()) == float(value)
    is_checked = opened.page.get_by_label("Colour by surprise").is_checked()
    assert opened.page.locator("#text.coloured").count() == is_checked


@pytest.mark.slow
def test_nothing_covers_the_text_or_a_button_in_a_small_window(opened):
    opened.page.set_viewport_size({"width": 320, "height": 450})
    opened.write(prompt="the cat", temperature=2, characters=300, seed=1)
    widths = "all => all.map(b => b.scrollWidth - b.clientWidth)"
    assert max(opened.page.get_by_role("button").evaluate_all(widths)) <= 0
    opened.page.locator("#text").focus()
    for key in ("Home", "End"):
        opened.page.keyboard.press(key)
        box = opened.page.locator("#text span.selected").bounding_box()
        aside = opened.page.locator("aside").bounding_box()
        assert 0 <= box["y"] < box["y"] + box["height"] <= aside["y"], (key, box, aside)
    name = 100 * "x"
    opened.page.goto(f"{opened.page.url}#model={name}&seed=1")
    opened.page.get_by_role("alert").filter(has_text=name).wait_for()
    assert opened.page.evaluate("document.scrollingElement.scrollWidth") == 320


@pytest.mark.slow
def test_a_server_that_ends_is_told_from_one_that_is_gone(open_page, run_folder):
    with serve(f"--workdir={run_folder}", timeout=30) as served:
        opened = open_page(served.url)
        opened.page.get_by_text("nats per character").wait_for()
        opened.fill(prompt="the", characters=100_000, alternatives=8, seed=1)
        opened.button("Write").click()
        opened.page.locator(".alternative span").nth(50).wait_for()
        served.process.terminate()
        opened.wait("The server ended before the text did.")
    opened.button("Write").click()
    opened.wait("The server does not answer.")


@pytest.mark.slow
def test_script_and_terminal_escapes_are_plain_text(opened):
    text = opened.write(prompt=HOSTILE, temperature=0.8, characters=30, seed=0)
    assert text.startswith(HOSTILE)
    assert opened.page.locator("#text script").count() == 0
    opened.page.locator("#text span").first.click()
    opened.button("Copy link").click()
    opened.page.reload()
    opened.wait("30 characters")
    assert opened.text() == text


@pytest.mark.slow
def test_what_the_model_does_not_know_is_named_at_the_prompt(opened):
    opened.fill(prompt="the ÿ", characters=20, seed=0)
    opened.button("Write").click()
    opened.page.get_by_role("alert").filter(has_text="U+00FF").wait_for()
    assert opened.page.get_by_label("Prompt").get_attribute("aria-invalid") == "true"
    # The browser itself logs the answer 400.
    assert all("400" in message for message in opened.messages)
    opened.messages.clear()


@pytest.mark.slow
def test_a_server_with_a_key_is_asked_with_the_key(open_page, run_folder, tmp_path):
    (tmp_path / "key").write_text("secret", encoding="utf-8")
    arguments = (f"--workdir={run_folder}", f"--key_file={tmp_path / 'key'}")
    with serve(*arguments, timeout=30) as served:
        opened = open_page(f"{served.url}/#prompt=the&count=20&seed=0")
        key = opened.page.get_by_label("Key of the server")
        key.wait_for()
        key.fill("secret")
        key.press("Enter")
        opened.wait("20 characters")
        assert len(opened.write(prompt="the", characters=20, seed=1)) == 23


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme, open_page, url):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # axe is a script that the page's own policy does not allow.
    opened = open_page(url, color_scheme=scheme, bypass_csp=True)
    opened.page.get_by_text("nats per character").wait_for()
    opened.write(prompt="the cat", temperature=1.5, characters=200, seed=1)
    opened.page.locator("#text span").nth(9).click()
    found = [axe.run(opened.page)]
    opened.fill(alternatives=2)
    opened.button("Regenerate").click()
    opened.wait("400 characters")
    found.append(axe.run(opened.page))
    assert [violation["id"] for page in found for violation in page.response["violations"]] == []
