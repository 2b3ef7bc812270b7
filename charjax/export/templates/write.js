// The page: reads prompt and settings, shows the text, coloured by surprise. A model must have
//   title, description: texts about it
//   unknown(text): names of the characters that the model cannot read
//   write({prompt, count, temperature, topK, topP, seed}): an async iterator over lists of
//     {text, nats}, nats the negative log-probability of the text at temperature 1
"use strict";

/** Connects the elements of the page to a model. */
function startPage(model) {
  const fields = {
    temperature: at("temperature"), topP: at("top-p"), topK: at("top-k"), count: at("count"),
    seed: at("seed"),
  };
  let text = ""; // the prompt and what the model wrote
  let isStopped = false;

  document.title = model.title;
  at("title").textContent = model.title;
  at("description").textContent = model.description;

  const showValues = () => {
    at("temperature-value").textContent = Number(fields.temperature.value).toFixed(2);
    at("top-p-value").textContent = Number(fields.topP.value).toFixed(2);
  };
  const setBusy = (isBusy) => {
    at("write").disabled = isBusy;
    at("continue").disabled = isBusy || !text;
    at("stop").disabled = !isBusy;
  };
  const append = (tag, content, className) => {
    const element = document.createElement(tag);
    element.textContent = content;
    if (className) element.className = className;
    at("text").append(element);
  };

  /** Writes after a prompt; in a continuation the page shows the prompt already. */
  async function write(prompt, isContinuation) {
    const unknown = model.unknown(prompt);
    at("problem").textContent = unknown.length
      ? `The model does not know ${unknown.join(", ")}.`
      : "";
    at("prompt").setAttribute("aria-invalid", String(unknown.length > 0));
    if (unknown.length) {
      at("prompt").focus();
      return;
    }
    const settings = { prompt };
    for (const [name, field] of Object.entries(fields)) settings[name] = Number(field.value);
    if (!isContinuation) {
      at("text").replaceChildren();
      append("b", prompt);
    }
    text = prompt;
    isStopped = false;
    const pressed = document.activeElement; // a button that is disabled loses the focus
    setBusy(true);
    if (pressed.disabled) at("stop").focus();
    at("status").textContent = "Writing…";
    let written = 0;
    let message;
    const started = performance.now();
    try {
      for await (const pieces of model.write(settings)) {
        for (const piece of pieces) {
          append("span", piece.text, surpriseClass(piece.nats));
          text += piece.text;
          written += 1;
        }
        if (isStopped) break;
      }
      const seconds = (performance.now() - started) / 1000;
      const stopped = isStopped ? "Stopped: " : "";
      message = `${stopped}${written} characters in ${seconds.toFixed(1)} s, seed ${settings.seed}`;
    } catch (error) {
      message = `Failed: ${error.message}`;
    }
    const goesBack = document.activeElement === at("stop");
    setBusy(false);
    if (goesBack) pressed.focus();
    at("status").textContent = message;
  }

  at("form").addEventListener("input", showValues);
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!at("write").disabled) write(at("prompt").value, false);
  });
  at("continue").addEventListener("click", () => {
    if (at("form").reportValidity()) write(text, true);
  });
  at("stop").addEventListener("click", () => (isStopped = true));
  at("draw").addEventListener("click", () => {
    fields.seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
  });
  at("coloured").addEventListener("change", (event) => {
    at("text").classList.toggle("coloured", event.target.checked);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") isStopped = true;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
  });
  showValues();
  setBusy(false);
}
