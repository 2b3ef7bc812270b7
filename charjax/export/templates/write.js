// The page to write with a model: reads prompt and settings, shows the text, coloured by surprise.
// A model must have
//   load(name): a promise of {title, description, models}: of the model of that name ("": the first),
//     and the names of all models
//   unknown(text): names of the characters that the model cannot read
//   write(settings, signal): an async iterator over lists of {sample, text, nats, top}: the number
//     of the sample, the text it adds, its negative log-probability at temperature 1, and the
//     likeliest characters as {text, probability}. `settings` has prompt, model, count,
//     temperature, topK, topP, minP, seed and samples, how many texts to write.
// and may have
//   copied(text, name): a promise of the [start, end] of passages of the text, in characters, that are
//     in the training text of the model of that name; null if it is not known
//   minCopied: characters of the shortest passage that `copied` finds
//   key: to be set to what the user gives when a promise is rejected with an error of status 401
"use strict";

const OTHERS = 5; // likeliest other characters that are shown

/** Connects the elements of the page to a model. */
function startPage(model) {
  const fields = {
    temperature: at("temperature"), topP: at("top-p"), minP: at("min-p"), topK: at("top-k"),
    count: at("count"), samples: at("samples"), seed: at("seed"),
  };
  const text = { prompt: "", pieces: [] }; // pieces: {text, nats, top} after the prompt
  let start = null; // the text before the newest continuation, and the settings of that
  let spans = []; // one for each piece
  let selected = -1;
  let stopper = null; // of the continuation that is being written
  let writing = Promise.resolve(); // until the newest continuation has ended

  const textOf = ({ prompt, pieces }) => prompt + pieces.map((piece) => piece.text).join("");
  const spanOf = (piece) => make("span", { class: surpriseClass(piece.nats) }, piece.text);

  async function load() {
    try {
      const { title, description, models } = await model.load(at("model").value);
      document.title = at("title").textContent = title;
      at("description").textContent = description;
      at("model-field").hidden = models.length < 2;
      if (!at("model").options.length) at("model").append(...models.map((name) => new Option(name)));
      at("problem").textContent = "";
      return true;
    } catch (error) {
      fail(error);
      return false;
    }
  }

  async function loadAndOpen() {
    if (await load()) openLink();
  }

  function fail(error) {
    if (error.status === 401) {
      at("key-field").hidden = false;
      at("key").focus();
    }
    at("prompt").setAttribute("aria-invalid", String(error.param === "prompt"));
    at("problem").textContent = error.message;
  }

  function showValues() {
    for (const name of ["temperature", "top-p", "min-p"]) {
      at(`${name}-value`).textContent = Number(at(name).value).toFixed(2);
    }
    for (const id of ["text", "alternatives"]) {
      at(id).classList.toggle("coloured", at("coloured").checked);
    }
  }

  function setBusy(isBusy) {
    at("write").disabled = isBusy;
    at("stop").disabled = !isBusy;
    for (const id of ["continue", "again", "save", "link"]) at(id).disabled = isBusy || !start;
  }

  /** Shows the text before a continuation, and nothing after it. */
  function show({ prompt, pieces }) {
    Object.assign(text, { prompt, pieces: [...pieces] });
    spans = pieces.map(spanOf);
    select(-1);
    at("text").replaceChildren(make("b", {}, prompt), ...spans);
    at("alternatives").replaceChildren();
    at("copied").textContent = "";
  }

  function add(piece) {
    text.pieces.push(piece);
    spans.push(spanOf(piece));
    at("text").append(spans[spans.length - 1]);
  }

  /** Columns of texts side by side; the one that the user keeps is added to the text. */
  function showAlternatives(count) {
    const columns = Array.from({ length: count }, (_, i) => {
      const keep = make("button", { type: "button" }, `Keep ${i + 1}`);
      const content = make("div", { class: "alternative" });
      const column = { pieces: [], content };
      keep.addEventListener("click", () => {
        at("stop").click();
        at("alternatives").replaceChildren();
        column.pieces.forEach(add);
        at("text").focus();
        markCopied();
      });
      at("alternatives").append(make("div", {}, keep, content));
      return column;
    });
    return ({ sample, ...piece }) => {
      columns[sample].pieces.push(piece);
      columns[sample].content.append(spanOf(piece));
    };
  }

  function readSettings() {
    const settings = { model: at("model").value };
    for (const [name, field] of Object.entries(fields)) settings[name] = Number(field.value);
    return settings;
  }

  /** Writes after a text: the prompt and the pieces that the page shows before it. */
  function write(before) {
    if (at("stop").disabled && at("form").reportValidity()) writing = writeAfter(before);
  }

  async function writeAfter(before) {
    const prompt = textOf(before);
    const unknown = model.unknown(prompt);
    fail({ message: unknown.length ? `The model does not know ${unknown.join(", ")}.` : "",
      param: unknown.length ? "prompt" : null });
    if (unknown.length) return at("prompt").focus();
    const settings = readSettings();
    show(before);
    start = { before: { prompt: before.prompt, pieces: [...before.pieces] }, settings };
    const pressed = document.activeElement; // a button that is disabled loses the focus
    stopper = new AbortController();
    setBusy(true);
    if (pressed.disabled) at("stop").focus();
    at("status").textContent = "Writing…";
    at("status").textContent = await follow({ ...settings, prompt }, stopper.signal);
    const goesBack = document.activeElement === at("stop");
    setBusy(false);
    if (goesBack) (pressed.isConnected ? pressed : at("text")).focus();
    if (settings.samples === 1) markCopied();
  }

  /** Shows what the model writes; returns what to say at its end. */
  async function follow(settings, signal) {
    const take = settings.samples > 1 ? showAlternatives(settings.samples) : add;
    const started = performance.now();
    let written = 0;
    try {
      for await (const pieces of model.write(settings, signal)) {
        pieces.forEach(take);
        written += pieces.length;
        if (signal.aborted) break;
      }
    } catch (error) {
      if (!signal.aborted) {
        fail(error);
        return `Failed: ${error.message}`;
      }
    }
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    const what = `${counted(written, "character")} in ${seconds} s, seed ${settings.seed}`;
    return signal.aborted ? `Stopped: ${what}` : what;
  }

  /** Underlines the passages that are in the training text. */
  async function markCopied() {
    if (!model.copied || !text.pieces.length) return;
    const whole = textOf(text);
    let passages;
    try {
      passages = await model.copied(whole, at("model").value);
    } catch (error) {
      at("copied").textContent = `Copied passages are not known: ${error.message}`;
      return;
    }
    if (!passages || whole !== textOf(text)) return;
    let place = [...text.prompt].length;
    text.pieces.forEach((piece, i) => {
      const end = place + [...piece.text].length;
      spans[i].classList.toggle("copied", passages.some(([a, b]) => place < b && end > a));
      place = end;
    });
    at("copied").textContent = `${counted(passages.length, "passage")} of at least ${model.minCopied} `
      + `characters in the training text${passages.length ? ", underlined" : ""}.`;
  }

  /** Chooses a piece of the text and shows what else the model could have written there. */
  function select(i) {
    if (spans[selected]) spans[selected].classList.remove("selected");
    selected = Math.min(Math.max(i, -1), spans.length - 1);
    const piece = text.pieces[selected];
    if (!piece || !spans[selected]) {
      at("character").replaceChildren(make("p", {}, "Choose one in the text by click or arrow keys."));
      return;
    }
    spans[selected].classList.add("selected");
    const place = selected;
    const others = (piece.top ?? []).filter((other) => other.text !== piece.text).slice(0, OTHERS);
    const entries = others.map((other) => ({
      name: charName(other.text),
      probability: other.probability,
      pick: () => writeFrom(place, other),
    }));
    const chance = percent(Math.exp(-piece.nats));
    at("character").replaceChildren(
      make("p", {}, make("bdi", {}, charName(piece.text)), `: ${chance}, ${piece.nats.toFixed(2)} nats`),
      make("p", {}, others.length ? "Likeliest others; choose one to write on from there:" : ""),
      likeliestList(entries),
    );
  }

  function writeFrom(place, other) {
    const piece = { ...text.pieces[place], text: other.text, nats: -Math.log(other.probability) };
    write({ prompt: text.prompt, pieces: [...text.pieces.slice(0, place), piece] });
  }

  function save() {
    const address = URL.createObjectURL(new Blob([textOf(text)], { type: "text/plain" }));
    make("a", { href: address, download: "text.txt" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  /** Puts prompt, seed and settings of the newest continuation into the page's address. */
  async function copyLink() {
    const values = { prompt: textOf(start.before), ...start.settings };
    history.replaceState(null, "", `#${new URLSearchParams(values)}`);
    try {
      await navigator.clipboard.writeText(location.href);
      at("status").textContent = "The link is copied.";
    } catch {
      at("status").textContent = "The link is the page's address now.";
    }
  }

  /** Writes what the page's address asks for, if it asks for anything. */
  async function openLink() {
    const values = new URLSearchParams(location.hash.slice(1));
    if (!values.has("seed")) return;
    stopper?.abort();
    await writing;
    const prompt = values.get("prompt") ?? "";
    at("prompt").value = prompt;
    const names = [...at("model").options].map((option) => option.value);
    if (names.includes(values.get("model"))) {
      at("model").value = values.get("model");
      await load();
      values.delete("model");
    }
    for (const [name, field] of Object.entries(fields)) {
      if (!values.has(name)) continue;
      field.value = values.get(name);
      if (Number(field.value) === Number(values.get(name))) values.delete(name);
    }
    showValues();
    const refused = ["model", ...Object.keys(fields)].filter((name) => values.get(name));
    if (!refused.length) return write({ prompt, pieces: [] });
    const list = refused.map((name) => `${name}=${values.get(name)}`).join(", ");
    fail({ message: `The link asks for what this page does not have: ${list}.` });
  }

  at("form").addEventListener("input", showValues);
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    write({ prompt: at("prompt").value, pieces: [] });
  });
  at("continue").addEventListener("click", () => write({ ...text }));
  at("again").addEventListener("click", () => write(start.before));
  at("stop").addEventListener("click", () => stopper?.abort());
  at("save").addEventListener("click", save);
  at("link").addEventListener("click", copyLink);
  at("draw").addEventListener("click", () => {
    fields.seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
  });
  at("coloured").addEventListener("change", showValues);
  at("model").addEventListener("change", load);
  at("key").addEventListener("change", () => {
    model.key = at("key").value;
    loadAndOpen();
  });
  at("text").addEventListener("click", ({ target }) => select(spans.indexOf(target)));
  moveByKeys(at("text"), () => spans, () => selected, select);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stopper?.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
  });
  addEventListener("hashchange", openLink);
  addEventListener("pageshow", showValues); // the browser may have filled the fields in
  setBusy(false);
  select(-1);
  loadAndOpen();
}
