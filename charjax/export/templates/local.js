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
    load: async () => ({ ...model.about, models: [] }),
    unknown: (text) => model.unknown(text).map(name),

    async *write({ prompt, count, samples, ...sampling }, signal) {
      const tokens = model.encode(prompt);
      let texts = Array.from({ length: samples }, (_, number) =>
        samplePieces(model, tokens, count, { ...sampling, number }));
      let pieces = [];
      let started = performance.now();
      while (texts.length && !signal.aborted) {
        texts = texts.filter((text) => { // one step of each
          const { done, value } = text.next();
          if (value) pieces.push(value);
          return !done;
        });
        if (performance.now() - started > SLICE) {
          yield pieces;
          pieces = [];
          await new Promise((resolve) => setTimeout(resolve));
          started = performance.now();
        }
      }
      yield pieces;
    },
  };
}

/** The pieces of one text as write.js wants them; null where a token adds no text. */
function* samplePieces(model, tokens, count, sampling) {
  // Of bytes: a character may take several tokens. U+FEFF is one, also at the start.
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const sampleNumber = sampling.number;
  let nats = 0;
  let top; // at the first token of a character
  for (const step of sample(model, tokens, count, sampling)) {
    if (!step) {
      yield null;
      continue;
    }
    const logTotal = logSumExp(step.logits);
    nats += logTotal - step.logits[step.token];
    top ??= likeliest(model, step.logits, logTotal);
    const unit = model.characters[step.token];
    const text = model.isBytes
      ? decoder.decode(Uint8Array.of(unit.charCodeAt(0)), { stream: true })
      : unit;
    yield text ? { sample: sampleNumber, text, nats, top } : null;
    if (text) [nats, top] = [0, undefined];
  }
  const rest = decoder.decode();
  if (rest) yield { sample: sampleNumber, text: rest, nats, top };
}

/** The likeliest characters; of bytes those in ASCII, which are characters alone. */
function likeliest(model, logits, logTotal) {
  const found = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, OTHERS + 1);
  return found
    .map((i) => ({ text: model.characters[i], probability: Math.exp(logits[i] - logTotal) }))
    .filter(({ text }) => text && (!model.isBytes || text < "\x80"));
}

/** The logarithm of the sum of exponentials. */
function logSumExp(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  return largest + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0));
}

if (typeof document !== "undefined") {
  startPage(localModel(new CharModel(embeddedBytes("weights"))));
}
