// A character model of charjax with int8 weights: reads tokens, samples the next one.
//
// It samples the same text as `charjax sample` with the same options and the dequantized weights.
// No module syntax, so that a page from disk can hold it and node can run it.
"use strict";

const SAMPLE_STREAM = 2; // charjax's random stream for samples
const TINY = 2 ** -126; // the smallest normal float32

/** The arrays and the metadata: 8 bytes of header length, a JSON header, raw int8 or float32. */
function readSafetensors(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const start = 8 + view.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  const metadata = header.__metadata__;
  delete header.__metadata__;
  const arrays = {};
  for (const [name, { dtype, data_offsets }] of Object.entries(header)) {
    const data = bytes.slice(start + data_offsets[0], start + data_offsets[1]).buffer;
    arrays[name] = dtype === "I8" ? new Int8Array(data) : new Float32Array(data);
  }
  return { arrays, metadata };
}

/** An int8 kernel, row after row, times the scale of each column: exact in float32. */
function dequantize(integers, scales) {
  return Float32Array.from(integers, (q, i) => q * scales[i % scales.length]);
}

/** out += x @ kernel. Four rows at once, so that each sum is loaded and stored less often. */
function addMatmul(out, x, kernel) {
  const columns = out.length;
  const whole = x.length - (x.length % 4);
  for (let i = 0; i < whole; i += 4) {
    const a = i * columns, b = a + columns, c = b + columns, d = c + columns;
    const xa = x[i], xb = x[i + 1], xc = x[i + 2], xd = x[i + 3];
    for (let j = 0; j < columns; j++) {
      out[j] += xa * kernel[a + j] + xb * kernel[b + j] + xc * kernel[c + j] + xd * kernel[d + j];
    }
  }
  for (let i = whole; i < x.length; i++) {
    for (let j = 0; j < columns; j++) out[j] += x[i] * kernel[i * columns + j];
  }
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// The cells. x and s hold the input gates and the hidden gates, block after block; h and c are the
// state of n units, and are replaced by the next one.
const CELLS = {
  /** Gates: reset, update, candidate. The reset gate scales the candidate's hidden gate. */
  gru(x, s, { h }, n) {
    for (let i = 0; i < n; i++) {
      const reset = sigmoid(x[i] + s[i]);
      const update = sigmoid(x[n + i] + s[n + i]);
      const candidate = Math.tanh(x[2 * n + i] + reset * s[2 * n + i]);
      h[i] = candidate + update * (h[i] - candidate);
    }
  },
  /** Gates: input, forget, candidate, output. */
  lstm(x, s, { h, c }, n) {
    for (let i = 0; i < n; i++) {
      const input = sigmoid(x[i] + s[i]);
      const forget = sigmoid(x[n + i] + s[n + i]);
      const candidate = Math.tanh(x[2 * n + i] + s[2 * n + i]);
      c[i] = forget * c[i] + input * candidate;
      h[i] = sigmoid(x[3 * n + i] + s[3 * n + i]) * Math.tanh(c[i]);
    }
  },
  /** One gate. */
  rnn(x, s, { h }, n) {
    for (let i = 0; i < n; i++) h[i] = Math.tanh(x[i] + s[i]);
  },
};

/** The weights and the vocabulary. */
class CharModel {
  /** `bytes` is a safetensors file of `charjax export --format=html`. */
  constructor(bytes) {
    const { arrays, metadata } = readSafetensors(bytes);
    this.config = JSON.parse(metadata.config);
    this.vocabulary = JSON.parse(metadata.vocabulary);
    this.about = JSON.parse(metadata.about);
    this.weights = {};
    for (const [name, array] of Object.entries(arrays)) {
      if (name.endsWith(".scales")) continue;
      const scales = arrays[`${name}.scales`];
      this.weights[name] = scales ? dequantize(array, scales) : array;
    }
    this.isBytes = this.vocabulary.unit === "byte";
    this.characters = [...this.vocabulary.symbols]; // by code point
    this.tokens = new Map(this.characters.map((character, token) => [character, token]));
    // The end of a document is the token after the characters; [UNK], the last, is never sampled.
    this.boundary = this.vocabulary.boundary ? this.characters.length : -1;
    this.sampled = this.characters.length + (this.vocabulary.boundary ? 1 : 0);
    this.size = this.weights.output_bias.length;
  }

  /** The state before the first token: of each layer h and, for LSTM, c. */
  zeroState() {
    const { layers, hidden } = this.config;
    const zeros = () => new Float64Array(hidden);
    return Array.from({ length: layers }, () => ({ h: zeros(), c: zeros() }));
  }

  /** Reads a token, which changes the state; returns the logits of the next one. */
  read(state, token) {
    const { cell, hidden, layers } = this.config;
    const weights = this.weights;
    let x = this._row("embedding", token); // undefined: one-hot
    for (let layer = 0; layer < layers; layer++) {
      const name = `layer_${layer}`;
      const igates = Float64Array.from(weights[`${name}.bias`]);
      const hgates = new Float64Array(igates.length);
      if (x) addMatmul(igates, x, weights[`${name}.kernel`]);
      else this._row(`${name}.kernel`, token).forEach((gate, i) => (igates[i] += gate));
      addMatmul(hgates, state[layer].h, weights[`${name}.recurrent.kernel`]);
      const bias = weights[`${name}.recurrent.bias`]; // of the candidate, the last gate
      if (bias) bias.forEach((value, i) => (hgates[hgates.length - hidden + i] += value));
      CELLS[cell](igates, hgates, state[layer], hidden);
      x = state[layer].h;
    }
    const logits = Float64Array.from(weights.output_bias);
    addMatmul(logits, x, weights.output_kernel);
    return logits;
  }

  /** A token's row of a matrix; undefined if the model has no such matrix. */
  _row(name, token) {
    const matrix = this.weights[name];
    const columns = name === "embedding" ? this.config.embed : this.weights["layer_0.bias"].length;
    return matrix && matrix.subarray(token * columns, (token + 1) * columns);
  }

  /** The characters of a text (bytes as latin-1), normalized like the model's training text. */
  units(text) {
    text = text.replace(/^\ufeff/, ""); // the byte order mark
    if (this.about.newlines === "unix") text = text.replace(/\r\n?/g, "\n");
    if (this.about.lowercase) {
      text = this.isBytes ? text.replace(/[A-Z]/g, (c) => c.toLowerCase()) : text.toLowerCase();
    }
    // Of equally good forms the first: a text of known characters stays as it is.
    const forms = [text, text.normalize("NFC"), text.normalize("NFD")].map((form) => this._split(form));
    const fewest = Math.min(...forms.map((form) => this._missing(form).length));
    return forms.find((form) => this._missing(form).length === fewest);
  }

  _split(text) {
    if (!this.isBytes) return [...text];
    return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte));
  }

  _missing(units) {
    return [...new Set(units)].filter((unit) => !this.tokens.has(unit));
  }

  /** The distinct characters or bytes of a text that the vocabulary lacks. */
  unknown(text) {
    return this._missing(this.units(text));
  }

  /** The tokens to read before the first sampled one: at least one. */
  encode(prompt) {
    const tokens = this.units(prompt).map((unit) => this.tokens.get(unit));
    const starts = tokens.length === 0 || this.vocabulary.boundary;
    return starts ? [this.vocabulary.start, ...tokens] : tokens;
  }
}

const rotate = (x, by) => (x << by) | (x >>> (32 - by));

/** Threefry-2x32 with 20 rounds (Salmon et al. 2011), as JAX has it. */
function threefry([key0, key1], high, low) {
  const keys = [key0, key1, key0 ^ key1 ^ 0x1bd11bda];
  let x = (high + key0) | 0;
  let y = (low + key1) | 0;
  for (let block = 0; block < 5; block++) {
    for (const rotation of block % 2 ? [17, 29, 16, 24] : [13, 15, 26, 6]) {
      x = (x + y) | 0;
      y = rotate(y, rotation) ^ x;
    }
    x = (x + keys[(block + 1) % 3]) | 0;
    y = (y + keys[(block + 2) % 3] + block + 1) | 0;
  }
  return [x, y];
}

const foldIn = (key, number) => threefry(key, 0, number);

/** Standard Gumbel noise in float32, number i of a key: -log(-log(u)), u uniform. */
function gumbel(key, i) {
  const [x, y] = threefry(key, 0, i);
  const uniform = Math.max(TINY, ((x ^ y) >>> 9) * 2 ** -23);
  return -Math.fround(Math.log(-Math.fround(Math.log(uniform))));
}

/** Which tokens may be sampled, after min-p, top-k and top-p, as charjax masks them. */
function allowed(logits, { temperature, topK = 0, topP = 1, minP = 0 }) {
  let keep = Array.from(logits, () => true);
  if (minP > 0) {
    const smallest = logits.reduce((a, b) => Math.max(a, b)) + temperature * Math.log(minP);
    keep = Array.from(logits, (logit) => logit >= smallest);
  }
  if (topK > 0 && topK < logits.length) {
    const smallest = Float64Array.from(logits).sort()[logits.length - topK];
    keep = keep.map((kept, i) => kept && logits[i] >= smallest);
  }
  if (topP < 1) {
    const largest = logits.reduce((a, b) => Math.max(a, b));
    const scale = 1 / Math.min(Math.max(temperature, 1e-30), 1e30);
    const weights = logits.map((logit, i) => (keep[i] ? Math.exp((logit - largest) * scale) : 0));
    const total = weights.reduce((a, b) => a + b);
    let before = 0; // total probability of the likelier tokens
    let smallest = Infinity;
    for (const weight of Float64Array.from(weights).sort().reverse()) {
      if (before >= Math.max(topP, TINY) * total) break;
      before += weight;
      smallest = weight;
    }
    keep = keep.map((kept, i) => kept && weights[i] >= smallest);
  }
  return keep;
}

/**
 * Samples tokens one after the other: yields {token, logits}, the logits it was sampled from; and
 * null after each token of the prompt, since reading a long one takes as long as writing it.
 *
 * `sampling` has temperature (0: greedy), topK (0: off), topP (1: off), minP (0: off), seed (0 to
 * 2 ** 32 - 1) and number (which sample of the seed). Ends after `count` tokens, or at the end of a
 * document.
 */
function* sample(model, prompt, count, sampling) {
  const { seed, number = 0 } = sampling;
  const temperature = Math.fround(Math.min(sampling.temperature, 1e30));
  const key = foldIn(foldIn([0, seed | 0], SAMPLE_STREAM), number);
  const state = model.zeroState();
  let logits;
  for (const token of prompt) {
    logits = model.read(state, token);
    yield null;
  }
  for (let position = 0; position < count; position++) {
    const positionKey = foldIn(key, position);
    const candidates = logits.subarray(0, model.sampled);
    const keep = allowed(candidates, { ...sampling, temperature });
    let token = -1;
    let best = -Infinity;
    candidates.forEach((logit, i) => {
      const value = keep[i] ? logit + temperature * gumbel(positionKey, i) : -Infinity;
      if (value > best) [token, best] = [i, value];
    });
    if (token === model.boundary) return;
    yield { token, logits };
    logits = model.read(state, token);
  }
}
