// Refusals, by the class of error that the SDK raises, and what an application reads from it.
import assert from "node:assert/strict";
import { APIUserAbortError, AuthenticationError, BadRequestError, NotFoundError, RateLimitError } from "openai";

const refusedWith = (kind, expected) => (error) => {
  assert.ok(error instanceof kind, error.stack);
  for (const [field, value] of Object.entries(expected)) assert.equal(error[field], value, error.stack);
  assert.ok(error.requestID);
  return true;
};

export async function badRequest({ client, model }) {
  const tooMany = { model, input: "Hi", metadata: { a: "", b: "", c: "" } };

  await assert.rejects(
    client.responses.create(tooMany),
    refusedWith(BadRequestError, { status: 400, code: "metadata_limits.too_many_pairs", type: "invalid_request_error" }),
  );
  await assert.rejects(
    client.responses.create({ ...tooMany, stream: true }),
    refusedWith(BadRequestError, { status: 400, code: "metadata_limits.too_many_pairs" }),
  );
  await assert.rejects(
    client.responses.compact({ input: "Hi" }),
    refusedWith(BadRequestError, { status: 400, code: "missing_required_parameter", param: "model" }),
  );
}

export async function unauthorized({ clientOf, model }) {
  const unknown = clientOf("sk-of-no-caller");
  const calls = [
    () => unknown.responses.create({ model, input: "Hi" }),
    () => unknown.responses.retrieve("resp_1"),
    () => unknown.conversations.create(),
    () => unknown.models.list(),
  ];

  for (const call of calls) {
    await assert.rejects(call(), refusedWith(AuthenticationError, { status: 401, code: "invalid_api_key" }));
  }
}

export async function notFound({ client }) {
  await assert.rejects(
    client.responses.create({ model: "none-of-these", input: "Hi" }),
    refusedWith(NotFoundError, { status: 404, code: "model_not_found", param: "model" }),
  );
  await assert.rejects(client.responses.retrieve("resp_0"), refusedWith(NotFoundError, { status: 404 }));
  await assert.rejects(client.conversations.retrieve("conv_0"), refusedWith(NotFoundError, { status: 404 }));
  await assert.rejects(client.get("/nothing"), refusedWith(NotFoundError, { status: 404 }));
}

export async function tooManyRequests({ client, slow }) {
  const ask = { model: slow, input: "Hi", background: true };
  const running = await client.responses.create(ask);
  try {
    await assert.rejects(client.responses.create(ask), refusedWith(RateLimitError, { status: 429 }));
  } finally {
    await client.responses.cancel(running.id);
  }
}

export async function aborted({ client, slow }) {
  const stream = await client.responses.create({ model: slow, input: "Hi", stream: true });
  for await (const event of stream) {
    assert.equal(event.type, "response.created");
    stream.controller.abort();
  }
  const controller = new AbortController();
  const waiting = client.responses.create({ model: slow, input: "Hi" }, { signal: controller.signal });
  controller.abort();

  await assert.rejects(waiting, APIUserAbortError);
}
