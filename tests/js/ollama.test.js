// The official ollama client works unchanged.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Ollama } from "ollama";
import {
  BREAK,
  CALL,
  SKY,
  STALL,
  all,
  failure,
  hello,
  key,
  operatorKey,
  poorKey,
  url,
  weather,
} from "./gateway.js";

const clientOf = (secret) =>
  new Ollama({ host: url, headers: { Authorization: `Bearer ${secret}` } });
const client = clientOf(key);
const operator = clientOf(operatorKey);
const model = "llama3";

test("models are listed, shown and told to run", async () => {
  const names = (await client.list()).models.map((one) => one.name);
  assert.ok(names.includes("llama3:latest"));
  assert.ok((await client.show({ model })).model_info["general.architecture"]);
  assert.equal((await client.ps()).models[0].name, "llama3:latest");
});

test("generate, whole and streamed", async () => {
  const whole = await client.generate({ model, prompt: "Why?" });
  const pieces = await all(await client.generate({ model, prompt: "Why?", stream: true }));
  assert.equal(whole.response, SKY);
  assert.equal(pieces.map((piece) => piece.response).join(""), SKY);
  assert.ok(pieces.at(-1).done && pieces.at(-1).eval_count === 9);
});

test("chat, whole and streamed", async () => {
  const whole = await client.chat({ model, messages: hello() });
  const pieces = await all(await client.chat({ model, messages: hello(), stream: true }));
  assert.equal(whole.message.content, SKY);
  assert.equal(pieces.map((piece) => piece.message.content).join(""), SKY);
});

test("a tool is called and answered", async () => {
  const tools = [{ type: "function", function: weather }];
  const { message } = await client.chat({ model, messages: hello(CALL), tools });
  assert.deepEqual(message.tool_calls[0].function, {
    name: "weather",
    arguments: { city: "Kiel" },
  });
  const messages = [...hello(), message, { role: "tool", tool_name: "weather", content: "rain" }];
  assert.equal((await client.chat({ model, messages, tools })).message.content, SKY);
});

test("embeddings", async () => {
  const asked = { model: "nomic-embed-text", input: ["one", "two"] };
  const { embeddings } = await client.embed(asked);
  const old = await client.embeddings({ model: "nomic-embed-text", prompt: "one" });
  assert.equal(embeddings.length, 2);
  assert.deepEqual(old.embedding, embeddings[0]);
});

test("an operator pulls with progress, and deletes", async () => {
  const steps = await all(await operator.pull({ model: "phi3", stream: true }));
  assert.equal(steps[0].status, "pulling manifest");
  assert.ok(steps.some((step) => step.completed === 400 && step.total === 1000));
  assert.equal(steps.at(-1).status, "success");
  assert.equal((await operator.delete({ model: "phi3" })).status, "success");
  assert.equal((await failure(() => operator.delete({ model: "phi3" }))).status_code, 404);
});

test("errors have their status and a text", async () => {
  const cases = [
    [() => clientOf(`olg_${"0".repeat(64)}`).list(), 401],
    [() => clientOf(poorKey).generate({ model, prompt: "x" }), 402],
    [() => client.pull({ model }), 403],
    [() => client.delete({ model }), 403],
    [() => client.chat({ model: "nonsuch", messages: hello() }), 404],
    [() => client.show({ model: "nonsuch" }), 404],
    [() => client.chat({ model, messages: hello(), format: "xml" }), 400],
  ];
  for (const [call, status] of cases) {
    const error = await failure(call);
    assert.equal(error.status_code, status);
    assert.ok(typeof error.error === "string" && error.error);
  }
});

test("a stream that breaks is an error", async () => {
  const error = await failure(async () =>
    all(await client.chat({ model, messages: hello(BREAK), stream: true })),
  );
  assert.match(error.message, /could not finish/);
});

test("a stream is left", async () => {
  const stream = await client.chat({ model, messages: hello(STALL), stream: true });
  const error = await failure(async () => {
    for await (const _piece of stream) stream.abort();
  });
  assert.equal(error.name, "AbortError");
});
