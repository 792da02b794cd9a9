// The official Anthropic client works unchanged.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
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

const clientOf = (apiKey) => new Anthropic({ baseURL: url, apiKey, maxRetries: 0 });
const client = clientOf(key);
const asked = (content, more) => ({
  model: "llama3",
  max_tokens: 100,
  messages: hello(content),
  ...more,
});
const tools = [
  { name: weather.name, description: weather.description, input_schema: weather.parameters },
];

test("a message", async () => {
  const answer = await client.messages.create(asked());
  assert.deepEqual(
    answer.content.map((block) => block.text),
    [SKY],
  );
  assert.equal(answer.stop_reason, "end_turn");
  assert.ok(answer.usage.output_tokens === 9 && answer._request_id);
});

test("a streamed message", async () => {
  const stream = client.messages.stream(asked());
  const pieces = [];
  stream.on("text", (text) => pieces.push(text));
  const final = await stream.finalMessage();
  assert.deepEqual([pieces.join(""), final.content[0].text], [SKY, SKY]);
  assert.equal(final.usage.output_tokens, 9);
});

test("a tool is called, whole and streamed, and answered", async () => {
  const whole = await client.messages.create(asked(CALL, { tools }));
  const streamed = await client.messages.stream(asked(CALL, { tools })).finalMessage();
  for (const message of [whole, streamed]) {
    const call = message.content.find((block) => block.type === "tool_use");
    assert.deepEqual([call.name, call.input], ["weather", { city: "Kiel" }]);
    assert.equal(message.stop_reason, "tool_use");
  }
  const call = whole.content.find((block) => block.type === "tool_use");
  const result = { type: "tool_result", tool_use_id: call.id, content: "rain" };
  const messages = [
    ...hello(),
    { role: "assistant", content: whole.content },
    { role: "user", content: [result] },
  ];
  const answer = await client.messages.create(asked("", { messages, tools }));
  assert.equal(answer.content[0].text, SKY);
});

test("errors are of their classes", async () => {
  const nobody = clientOf(`olg_${"0".repeat(64)}`);
  const cases = [
    [() => nobody.messages.create(asked()), Anthropic.AuthenticationError, 401],
    [() => client.messages.create(asked("x", { model: "nonsuch" })), Anthropic.NotFoundError, 404],
    [() => client.messages.create(asked("x", { max_tokens: 0 })), Anthropic.BadRequestError, 400],
    [() => clientOf(poorKey).messages.create(asked()), Anthropic.APIError, 402],
  ];
  for (const [call, kind, status] of cases) {
    const error = await failure(call);
    assert.ok(error instanceof kind, String(error));
    assert.equal(error.status, status);
    assert.ok(error.requestID);
  }
});

test("a stream that breaks is an error", async () => {
  const stream = await client.messages.create(asked(BREAK, { stream: true }));
  const error = await failure(() => all(stream));
  assert.ok(error instanceof Anthropic.APIError, String(error));
});

test("a stream is left", async () => {
  const stream = await client.messages.create(asked(STALL, { stream: true }));
  for await (const event of stream) if (event.type === "content_block_delta") break;
  stream.controller.abort();
});
