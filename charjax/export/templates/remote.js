// Gives the page its model: the server that the page comes from, in the completions protocol.
"use strict";

const MIN_COPIED = 40; // characters of the shortest passage that is marked as copied
const LABELS = { max_tokens: "Characters", n: "Alternatives" }; // on the page, of fields with limits

/** Wraps the server in the interface that write.js describes. */
function remoteModel() {
  const self = { key: "", minCopied: MIN_COPIED, unknown: () => [], load, write, copied };

  /** A response of the server; its error has the status and the field that the server names. */
  async function ask(path, options = {}) {
    const headers = self.key ? { Authorization: `Bearer ${self.key}` } : {};
    if (options.body) headers["Content-Type"] = "application/json";
    const response = await fetch(path, { ...options, headers }).catch((cause) => {
      throw new Error("The server does not answer.", { cause });
    });
    if (response.ok) return response;
    const body = await response.json().catch(() => ({}));
    const { param, message: text = `the server answered ${response.status}` } = body.error ?? {};
    const message = text.replace(`${param}:`, `${LABELS[param] ?? param}:`);
    throw Object.assign(new Error(message), { status: response.status, ...body.error, message });
  }

  const post = (path, values, signal) =>
    ask(path, { method: "POST", body: JSON.stringify(values), signal });

  async function load(name) {
    const { data } = await (await ask("v1/models")).json();
    const { id, charjax } = data.find((model) => model.id === name) ?? data[0];
    const steps = charjax.step ? ` for ${counted(charjax.step, "step")}` : ""; // 0: converted
    const loss = charjax.val_loss === null ? "" : `, ${charjax.val_loss.toFixed(3)} nats per character`;
    return {
      title: `Write with ${id}`,
      description: `${charjax.cell.toUpperCase()}, ${charjax.layers} x ${charjax.hidden} units, trained on `
        + `${charjax.corpus}${steps}${loss}`,
      models: data.map((model) => model.id),
    };
  }

  async function* write({ prompt, model, count, temperature, topK, topP, minP, seed, samples }, signal) {
    const response = await post("v1/completions", {
      model: model || null, prompt, temperature, seed, max_tokens: count, top_k: topK, top_p: topP,
      min_p: minP, n: samples, logprobs: OTHERS + 1, stream: true,
    }, signal);
    for await (const event of serverSentEvents(response.body)) {
      if (event === "[DONE]") return;
      const { choices, error } = JSON.parse(event);
      if (error) throw Object.assign(new Error(error.message), { param: error.param });
      yield choices.flatMap(choicePieces);
    }
    throw new Error("The server ended before the text did.");
  }

  async function copied(text, model) {
    try {
      const response = await post("v1/copied", { model: model || null, text, min_chars: MIN_COPIED });
      return (await response.json()).passages.map(({ start, end }) => [start, end]);
    } catch (error) {
      if (error.code === "no_text") return null;
      throw error;
    }
  }

  return self;
}

/** The pieces of a choice: one for each character, which has several tokens if those are bytes. */
function choicePieces({ index, text, logprobs }) {
  const { token_logprobs: all, top_logprobs: tops, text_offset: offsets } = logprobs;
  const characters = [...text];
  const firsts = [...offsets.keys()].filter((i) => offsets[i] !== offsets[i - 1]); // tokens
  const ends = [...firsts.slice(1), offsets.length];
  const place = (i) => (i < offsets.length ? offsets[i] - offsets[0] : characters.length);
  return firsts.map((first, k) => ({
    sample: index,
    text: characters.slice(place(first), place(ends[k])).join(""),
    nats: -all.slice(first, ends[k]).reduce((a, b) => a + b, 0),
    top: Object.entries(tops[first])
      .filter(([other]) => [...other].length === 1 && other !== "\ufffd") // [UNK]
      .map(([other, logprob]) => ({ text: other, probability: Math.exp(logprob) }))
      .sort((a, b) => b.probability - a.probability),
  }));
}

/** The data of each event of a text/event-stream; it may end early. */
async function* serverSentEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(() => ({ done: true }));
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

if (typeof document !== "undefined") startPage(remoteModel());
