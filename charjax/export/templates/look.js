// The page of `charjax look`: a text coloured by surprise or by a unit's activation.
"use strict";

const LEVELS = ["n4", "n3", "n2", "n1", "z0", "p1", "p2", "p3", "p4"]; // of activations -1 to 1

/** Shows what look.py has put into the page. */
function startLook(look) {
  const nats = look.millinats.map((nats) => nats / 1000); // of each character but the first
  const spans = look.pieces.map((piece) => make("span", {}, piece));
  const activations = {}; // of the units shown so far
  const number = (value) => value.toFixed(2).replace("-", "−");
  let selected = Math.min(1, spans.length - 1); // nothing predicts the first character
  let shownUnit = null; // null: the colours are those of surprise

  document.title = look.title;
  at("title").textContent = look.title;
  at("description").textContent = look.description;
  at("method").textContent = look.method;
  at("unit").max = look.units - 1;
  at("text").append(...spans);

  /** The activations of a unit, -127 to 127; undefined if the page does not hold them. */
  function unitActivations(unit) {
    if (look.activations[unit]) {
      activations[unit] ??= new Int8Array(base64Bytes(look.activations[unit]).buffer);
    }
    return activations[unit];
  }

  function colour() {
    const values = shownUnit === null ? null : unitActivations(shownUnit);
    spans.forEach((span, i) => {
      const level = values ? LEVELS[Math.round((values[i] / 127 + 1) * 4)] : "";
      span.className = shownUnit === null && i > 0 ? surpriseClass(nats[i - 1]) : level;
    });
    at("surprise-legend").hidden = shownUnit !== null;
    at("unit-legend").hidden = shownUnit === null;
    const missing = shownUnit !== null && !values;
    at("status").textContent = missing ? `This page does not hold unit ${shownUnit}.` : "";
    select(selected);
  }

  function show(unit) {
    shownUnit = unit;
    for (const button of at("features").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.unit) === unit));
    }
    at(unit === null ? "by-surprise" : "by-unit").checked = true;
    if (unit !== null) at("unit").value = unit;
    colour();
  }

  function select(i) {
    spans[selected].classList.remove("selected");
    selected = Math.min(Math.max(i, 0), spans.length - 1);
    spans[selected].classList.add("selected");
    const lines = [`${(selected + 1).toLocaleString("en")}: ${charName(look.names[look.ids[selected]])}`];
    const values = shownUnit === null ? null : unitActivations(shownUnit);
    if (values) lines.push(`unit ${shownUnit}: ${number(values[selected] / 127)}`);
    const content = [];
    if (selected > 0) {
      const place = selected - 1;
      lines.push(`${number(nats[place])} nats, rank ${look.ranks[place]}`);
      const entries = look.topIds[place].map((id, k) => ({
        name: charName(look.names[id]),
        probability: look.topMillionths[place][k] / 1e6,
      }));
      content.push(make("p", {}, "Likeliest here:"), likeliestList(entries));
    }
    at("character").replaceChildren(...lines.map((line) => make("p", {}, line)), ...content);
  }

  /** The table of the units that separate each feature. */
  function listFeatures() {
    for (const { name, description, statistic, units } of look.separations) {
      if (!units.length) continue;
      const buttons = units.map(({ number: unit, sign, chosen, reported }) => {
        const label = `${unit} ${sign < 0 ? "falls" : "rises"}: ${number(reported)}`;
        const title = `Show unit ${unit}; on the half that chose it: ${number(chosen)}`;
        const button = make("button", { type: "button", title, "data-unit": unit }, label);
        button.addEventListener("click", () => show(unit));
        return button;
      });
      const heading = make("th", { scope: "row" }, name, make("small", {}, description));
      const cell = make("td", {}, make("div", { class: "units" }, ...buttons));
      at("features").append(make("tr", {}, heading, make("td", {}, statistic), cell));
    }
    const absent = look.separations.filter(({ units }) => !units.length).map(({ name }) => name);
    if (absent.length) at("absent").textContent = `Too rare in this text: ${absent.join(", ")}.`;
  }

  at("by-surprise").addEventListener("change", () => show(null));
  at("by-unit").addEventListener("change", () => {
    show(at("unit").reportValidity() ? Number(at("unit").value) : null);
  });
  at("unit").addEventListener("input", () => {
    if (at("unit").checkValidity()) show(Number(at("unit").value));
  });
  at("text").addEventListener("pointerover", ({ target }) => {
    const i = spans.indexOf(target);
    if (i >= 0) select(i);
  });
  moveByKeys(at("text"), () => spans, () => selected, select);
  listFeatures();
  const [best] = look.separations.flatMap(({ units }) => units);
  // After the browser has filled the fields in, as it does on the way back to a page.
  addEventListener("pageshow", () => show(best ? best.number : null), { once: true });
}

startLook(JSON.parse(at("look").textContent));
