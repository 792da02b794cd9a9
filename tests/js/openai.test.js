// The official openai client works unchanged.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import {
  BREAK,
  CALL,
  SKY,
  STALL,
  all,
  failure,
  hello,
  key,
  poorKey,
  url,
  weather,
} from "./gateway.js";

const clientOf = (apiKey) => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const client = clientOf(key);
const chat = (more) =>
  client.chat.completions.create({ model: "llama3", messages: hello(), ...more });
const tools = [{ type: "function", function: weather }];

test("a chat", async () => {
  const answer = await chat();
  assert.equal(answer.choices[0].message.content, SKY);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.ok(answer._request_id && Number(answer.usage.cost) > 0);
});

test("a streamed chat, with its usage last", async () => {
  const chunks = await all(await chat({ stream: true, stream_options: { include_usage: true } }));
  const last = chunks.pop();
  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), SKY);
  assert.deepEqual([last.choices, last.usage.total_tokens], [[], 11]);
  assert.ok(chunks.every((chunk) => chunk.usage === null));
});

test("the streaming helper gathers the answer", async () => {
  const stream = client.chat.completions.stream({ model: "llama3", messages: hello() });
  assert.equal(await stream.finalContent(), SKY);
});

test("a tool is called, whole and streamed, and answered", async () => {
  const asked = { model: "llama3", messages: hello(CALL), tools };
  const whole = (await client.chat.completions.create(asked)).choices[0];
  const streamed = await client.chat.completions.stream(asked).finalMessage();
  for (const message of [whole.message, streamed]) {
    assert.equal(message.tool_calls[0].function.name, "weather");
    assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { city: "Kiel" });
  }
  assert.equal(whole.finish_reason, "tool_calls");
  const result = { role: "tool", tool_call_id: whole.message.tool_calls[0].id, content: "rain" };
  const messages = [...hello(), whole.message, result];
  assert.equal((await chat({ messages })).choices[0].message.content, SKY);
});

test("a completion", async () => {
  const answer = await client.completions.create({ model: "llama3", prompt: "Why?" });
  assert.equal(answer.choices[0].text, SKY);
});

test("embeddings are the same as base64 and as numbers", async () => {
  const asked = { model: "nomic-embed-text", input: ["one", "two"] };
  const usual = await client.embeddings.create(asked);
  const plain = await client.embeddings.create({ ...asked, encoding_format: "float" });
  assert.equal(usual.data.length, 2);
  usual.data[1].embedding.forEach((number, i) => {
    assert.ok(Math.abs(number - plain.data[1].embedding[i]) < 1e-6);
  });
});

test("models are listed and found", async () => {
  const names = (await all(client.models.list())).map((model) => model.id);
  assert.ok(names.includes("llama3:latest"));
  assert.equal((await client.models.retrieve("llama3")).id, "llama3:latest");
});

test("a response, whole and streamed", async () => {
  const asked = { model: "llama3", input: "hello there", instructions: "Be brief." };
  const whole = await client.responses.create(asked);
  const stream = client.responses.stream(asked);
  const deltas = [];
  stream.on("response.output_text.delta", (event) => deltas.push(event.delta));
  const final = await stream.finalResponse();
  assert.deepEqual([whole.output_text, final.output_text, deltas.join("")], [SKY, SKY, SKY]);
  assert.deepEqual(final.usage, whole.usage);
});

test("a response calls a tool", async () => {
  const tool = { type: "function", strict: false, ...weather };
  const stream = client.responses.stream({ model: "llama3", input: CALL, tools: [tool] });
  const [call] = (await stream.finalResponse()).output.filter(
    (item) => item.type === "function_call",
  );
  assert.deepEqual([call.name, JSON.parse(call.arguments)], ["weather", { city: "Kiel" }]);
});

test("errors are of their classes", async () => {
  const cases = [
    [() => clientOf(`olg_${"0".repeat(64)}`).models.list(), OpenAI.AuthenticationError, 401],
    [() => chat({ model: "nonsuch" }), OpenAI.NotFoundError, 404],
    [() => chat({ n: 2 }), OpenAI.BadRequestError, 400],
    [
      () => clientOf(poorKey).chat.completions.create({ model: "llama3", messages: hello() }),
      OpenAI.APIError,
      402,
    ],
    [
      () => client.responses.create({ model: "llama3", input: "x", store: true }),
      OpenAI.BadRequestError,
      400,
    ],
  ];
  for (const [call, kind, status] of cases) {
    const error = await failure(call);
    assert.ok(error instanceof kind, String(error));
    assert.equal(error.status, status);
    assert.ok(error.requestID && error.code);
  }
});

test("a stream that breaks is an error", async () => {
  const streams = [
    await chat({ messages: hello(BREAK), stream: true }),
    await client.responses.create({ model: "llama3", input: BREAK, stream: true }),
  ];
  for (const stream of streams) {
    const error = await failure(() => all(stream));
    assert.ok(error instanceof OpenAI.APIError, String(error));
  }
});

test("a stream is left", async () => {
  const stream = await chat({ messages: hello(STALL), stream: true });
  for await (const _chunk of stream) break;
  stream.controller.abort();
});
