// Gives the page its model: the server that the page comes from, in the completions protocol.
"use strict";

const MIN_COPIED = 40; // characters of the shortest passage that is marked as copied

/** Wraps the server in the interface that write.js describes. */
function remoteModel() {
  const self = { key: "", minCopied: MIN_COPIED, unknown: () => [], load, write, copied };

  /** A response of the server; its error has the status and the field that the server names. */
  async function ask(path, options = {}) {
    const headers = self.key ? { Authorization: `Bearer ${self.key}` } : {};
    if (options.body) headers["Content-Type"] = "application/json";
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    const body = await response.json().catch(() => ({}));
    const message = body.error?.message ?? `the server answered ${response.status}`;
    throw Object.assign(new Error(message), { status: response.status, ...body.error, message });
  }

  const post = (path, values, signal) =>
    ask(path, { method: "POST", body: JSON.stringify(values), signal });

  async function load(name) {
    const { data } = await (await ask("v1/models")).json();
    const { id, charjax } = data.find((model) => model.id === name) ?? data[0];
    const loss = charjax.val_loss === null ? "" : `, ${charjax.val_loss.toFixed(3)} nats per character`;
    return {
      title: `Write with ${id}`,
      description: `${charjax.cell.toUpperCase()}, ${charjax.layers} x ${charjax.hidden} units, trained on `
        + `${charjax.corpus} for ${charjax.step.toLocaleString("en")} steps${loss}`,
      models: data.map((model) => model.id),
    };
  }

  async function* write({ prompt, model, count, temperature, topK, topP, minP, seed, samples }, signal) {
    const response = await post("v1/completions", {
      model, prompt, temperature, seed, max_tokens: count, top_k: topK, top_p: topP, min_p: minP,
      n: samples, logprobs: OTHERS + 1, stream: true,
    }, signal);
    for await (const event of serverSentEvents(response.body)) {
      if (event === "[DONE]") return;
      const { choices, error } = JSON.parse(event);
      if (error) throw Object.assign(new Error(error.message), { param: error.param });
      yield choices.flatMap(choicePieces);
    }
  }

  async function copied(text, model) {
    try {
      const response = await post("v1/copied", { model, text, min_chars: MIN_COPIED });
      return (await response.json()).passages.map(({ start, end }) => [start, end]);
    } catch (error) {
      if (error.code === "no_text") return null;
      throw error;
    }
  }

  return self;
}

/** The pieces of a choice: one for each token, or one for all where a character has several. */
function choicePieces({ index, text, logprobs }) {
  const tokens = logprobs?.tokens ?? [];
  if (tokens.join("") !== text) {
    const nats = -(logprobs?.token_logprobs ?? []).reduce((a, b) => a + b, 0);
    return text ? [{ sample: index, text, nats }] : [];
  }
  return tokens.map((token, i) => ({
    sample: index,
    text: token,
    nats: -logprobs.token_logprobs[i],
    top: Object.entries(logprobs.top_logprobs[i])
      .filter(([other]) => [...other].length === 1)
      .map(([other, logprob]) => ({ text: other, probability: Math.exp(logprob) }))
      .sort((a, b) => b.probability - a.probability),
  }));
}

/** The data of each event of a text/event-stream. */
async function* serverSentEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

startPage(remoteModel());
