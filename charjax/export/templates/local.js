// Gives the page its model: weights from the page itself, inference by model.js.
"use strict";

const SLICE = 24; // milliseconds of inference between two updates of the page

/** Wraps a `CharModel` in the interface that write.js describes. */
function localModel(model) {
  const name = (unit) => {
    const code = unit.codePointAt(0).toString(16).toUpperCase();
    return model.isBytes ? `byte 0x${code.padStart(2, "0")}` : `“${unit}” (U+${code.padStart(4, "0")})`;
  };
  return {
    title: model.about.title,
    description: model.about.description,
    unknown: (text) => model.unknown(text).map(name),

    async *write({ prompt, count, ...sampling }) {
      const decoder = new TextDecoder(); // of bytes: a character may take several tokens
      let pieces = [];
      let nats = 0;
      let started = performance.now();
      for (const step of sample(model, model.encode(prompt), count, sampling)) {
        if (step) {
          nats += surprise(step.logits, step.token);
          const unit = model.characters[step.token];
          const text = model.isBytes
            ? decoder.decode(Uint8Array.of(unit.charCodeAt(0)), { stream: true })
            : unit;
          if (text) {
            pieces.push({ text, nats });
            nats = 0;
          }
        }
        if (performance.now() - started > SLICE) {
          yield pieces;
          pieces = [];
          await new Promise((resolve) => setTimeout(resolve));
          started = performance.now();
        }
      }
      const rest = decoder.decode();
      yield rest ? [...pieces, { text: rest, nats }] : pieces;
    },
  };
}

/** The negative log-probability of a token at temperature 1. */
function surprise(logits, token) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const total = logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0);
  return largest + Math.log(total) - logits[token];
}

if (typeof document !== "undefined") {
  startPage(localModel(new CharModel(embeddedBytes("weights"))));
}
