// Parts that the pages have in common.
"use strict";

const SURPRISES = [1, 2, 3, 5]; // in nats: upper bounds of the CSS classes s1 to s4; s5 has none
const NAMES = { "\n": "line end", " ": "space", "\t": "tab", "\r": "carriage return" };

const at = (id) => document.getElementById(id);

/** The CSS class of a surprise in nats. */
function surpriseClass(nats) {
  return `s${1 + SURPRISES.filter((bound) => nats > bound).length}`;
}

/** A new element with attributes and content: texts, which stay plain text, and elements. */
function make(tag, attributes = {}, ...content) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...content);
  return element;
}

/** A character as a person reads it: a blank by its name, a control character by its number. */
function charName(character) {
  if (NAMES[character]) return NAMES[character];
  if (!/^[\p{C}\p{Z}]$/u.test(character)) return character;
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

/** A number with its noun: 1 character, 2,000 characters. */
function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** A probability in percent. */
function percent(probability) {
  const value = 100 * probability;
  return `${value < 0.1 ? "<0.1" : value.toFixed(value < 10 ? 1 : 0)}\u00a0%`;
}

/**
 * The likeliest characters as a list with bars. `entries` are {name, probability, pick}; one with
 * a function `pick` becomes a button that calls it.
 */
function likeliestList(entries) {
  const list = make("ol", { class: "likeliest" });
  for (const { name, probability, pick } of entries) {
    const bar = make("meter", { min: 0, max: 1, value: probability, "aria-hidden": "true" });
    const label = make(pick ? "button" : "span", pick ? { type: "button" } : {}, name);
    if (pick) label.addEventListener("click", pick);
    list.append(make("li", {}, label, bar, make("span", {}, percent(probability))));
  }
  return list;
}

/** The bytes of base64 text. */
function base64Bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

/** The bytes of a script element with base64 text. */
function embeddedBytes(id) {
  return base64Bytes(at(id).textContent.trim());
}

/** The character above (direction -1) or below (1) number `from`, as the page is laid out. */
function verticalNeighbour(spans, from, direction) {
  const start = spans[from].getBoundingClientRect();
  let best = from;
  let distance = Infinity;
  for (let i = from + direction; spans[i]; i += direction) {
    const box = spans[i].getBoundingClientRect();
    if (direction * (box.top - start.top) > 1.5 * start.height && best !== from) break;
    const aside = Math.abs(box.left - start.left);
    if (direction * (box.top - start.top) > start.height / 2 && aside < distance) {
      [best, distance] = [i, aside];
    }
  }
  return best;
}

/** Lets the arrow keys, Home and End move the selected character of a text. */
function moveByKeys(element, getSpans, getSelected, select) {
  element.addEventListener("keydown", (event) => {
    const [spans, selected] = [getSpans(), getSelected()];
    const above = (direction) => (spans[selected] ? verticalNeighbour(spans, selected, direction) : 0);
    const moves = {
      ArrowLeft: () => selected - 1, ArrowRight: () => selected + 1, ArrowUp: () => above(-1),
      ArrowDown: () => above(1), Home: () => 0, End: () => spans.length - 1,
    };
    if (!spans.length || !moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    select(Math.min(Math.max(moves[event.key](), 0), spans.length - 1));
    spans[getSelected()].scrollIntoView({ block: "nearest" });
  });
}
