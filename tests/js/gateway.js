// Where the gateway is and who asks, as tests/flow/test_js_sdks.py says; without it nothing is run.
export const url = process.env.GATEWAY_URL;
export const key = process.env.GATEWAY_KEY;
export const operatorKey = process.env.OPERATOR_KEY;
export const poorKey = process.env.POOR_KEY;

// What the fake model server answers, and what it does for these questions.
export const SKY = "The sky is blue because of Rayleigh scattering.";
export const STALL = "stall";
export const BREAK = "break";
export const CALL = "call";

export const hello = (content = "hello there") => [{ role: "user", content }];

export const weather = {
  name: "weather",
  description: "Today's weather",
  parameters: { type: "object", properties: { city: { type: "string" } } },
};

// The error that a call ends in.
export async function failure(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error("it did not fail");
}

export async function all(stream) {
  const found = [];
  for await (const one of stream) found.push(one);
  return found;
}
