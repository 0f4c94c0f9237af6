// Responses: created, streamed, stored, continued, counted, compacted and listed, as an application does it.
import assert from "node:assert/strict";
import { BadRequestError, NotFoundError } from "openai";

const collect = async (pages) => {
  const found = [];
  for await (const each of pages) found.push(each);
  return found;
};

const user = (content) => ({ type: "message", role: "user", content });

const text = (events) =>
  events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta).join("");

export async function created({ client, model }) {
  const { data, response } = await client.responses.create({ model, input: "Hello!", metadata: { a: "b" } }).withResponse();

  assert.equal(data.object, "response");
  assert.equal(data.status, "completed");
  assert.equal(data.store, true);
  assert.notEqual(data.output_text, "");
  assert.deepEqual(data.metadata, { a: "b" });
  assert.equal(data.usage.input_tokens + data.usage.output_tokens, data.usage.total_tokens);
  assert.ok(response.headers.get("x-request-id"));
}

export async function streamed({ client, model }) {
  const events = await collect(await client.responses.create({ model, input: "Hello!", stream: true }));
  const final = events.at(-1);

  assert.equal(events[0].type, "response.created");
  assert.equal(final.type, "response.completed");
  assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
  assert.notEqual(text(events), "");
  assert.equal(text(events), final.response.output[0].content[0].text);
}

export async function readByTheStreamHelper({ client, model }) {
  const stream = client.responses.stream({ model, input: "Hello!" });
  const seen = [];
  stream.on("response.output_text.delta", (event) => seen.push(event.snapshot));
  const final = await stream.finalResponse();

  assert.equal(final.status, "completed");
  assert.equal(seen.at(-1), final.output_text);
}

export async function parsed({ client, model }) {
  const answer = await client.responses.parse({ model, input: "Hello!" });

  assert.equal(answer.output_parsed, null);
  assert.notEqual(answer.output_text, "");
}

export async function retrievedAndDeleted({ client, stranger, model }) {
  const answer = await client.responses.create({ model, input: "Hello!" });
  const again = await client.responses.retrieve(answer.id, { include: ["reasoning.encrypted_content"] });

  assert.deepEqual(again, answer);
  for (const method of ["retrieve", "delete", "cancel"]) {
    await assert.rejects(stranger.responses[method](answer.id), NotFoundError);
  }
  await client.responses.delete(answer.id);
  await assert.rejects(client.responses.retrieve(answer.id), (error) => {
    assert.ok(error instanceof NotFoundError);
    assert.equal(error.type, "invalid_request_error");
    assert.match(error.message, new RegExp(`Response with id '${answer.id}' not found`));
    return true;
  });
}

export async function continuedByItsId({ client, stranger, model, kind }) {
  const first = await client.responses.create({ model, input: "My name is Emma." });
  const next = { model, input: "What is my name?", previous_response_id: first.id };
  const second = await client.responses.create(next);

  assert.equal(second.previous_response_id, first.id);
  if (kind === "demo") assert.match(second.output_text, /Emma/);
  await assert.rejects(stranger.responses.create(next), (error) => {
    assert.ok(error instanceof BadRequestError);
    assert.equal(error.code, "previous_response_not_found");
    assert.equal(error.param, "previous_response_id");
    return true;
  });
}

export async function inputItemsAreListedInPages({ client, model }) {
  const answer = await client.responses.create({ model, input: [user("One"), user("Two"), user("Three")] });
  const newest = await client.responses.inputItems.list(answer.id);
  const pages = client.responses.inputItems.list(answer.id, { order: "asc", limit: 1 });
  const oldest = await collect(pages);
  const page = await client.responses.inputItems.list(answer.id, { order: "asc", after: oldest[0].id, include: [] });

  assert.deepEqual(oldest.map((item) => item.content[0].text), ["One", "Two", "Three"]);
  assert.deepEqual(newest.data, oldest.toReversed());
  assert.deepEqual(page.data, oldest.slice(1));
  assert.equal(page.has_more, false);
}

export async function inputTokensAreCounted({ client, model, kind }) {
  const counted = await client.responses.inputTokens.count({ model, input: "One two three" });
  const answer = await client.responses.create({ model, input: "One two three" });

  assert.equal(counted.object, "response.input_tokens");
  assert.equal(counted.input_tokens, kind === "demo" ? answer.usage.input_tokens : 3);
}

export async function compacted({ client, model }) {
  const input = [user("My name is Emma."), { type: "message", role: "assistant", content: "Hello, Emma!" }];
  const compaction = await client.responses.compact({ model, input });
  const after = await client.responses.create({ model, input: [...compaction.output, user("Hello!")] });

  assert.equal(compaction.object, "response.compaction");
  assert.deepEqual(compaction.output.map((item) => item.type), ["message", "compaction"]);
  assert.equal(after.status, "completed");
}

export async function polledInTheBackground({ client, model }) {
  let answer = await client.responses.create({ model, input: "Hello!", background: true });
  const seen = [answer.status];
  while (answer.status === "queued" || answer.status === "in_progress") {
    answer = await client.responses.retrieve(answer.id);
    seen.push(answer.status);
  }

  assert.equal(seen[0], "queued");
  assert.equal(seen.at(-1), "completed");
  assert.notEqual(answer.output_text, "");
}

export async function resumedInTheBackground({ client, model }) {
  const before = [];
  const stream = await client.responses.create({ model, input: "Count to ten.", background: true, stream: true });
  for await (const event of stream) {
    before.push(event);
    if (before.length === 4) break;
  }
  const id = before[0].response.id;
  const last = before.at(-1).sequence_number;
  const rest = await collect(await client.responses.retrieve(id, { stream: true, starting_after: last }));
  const whole = await collect(await client.responses.retrieve(id, { stream: true }));

  assert.deepEqual(whole, [...before, ...rest]);
  assert.deepEqual(whole.map((event) => event.sequence_number), [...whole.keys()]);
  assert.equal(rest.at(-1).type, "response.completed");
}

export async function resumedByTheStreamHelper({ client, model }) {
  const started = await client.responses.create({ model, input: "Hello!", background: true, stream: true });
  const events = await collect(started);
  const id = events[0].response.id;
  const final = await client.responses.stream({ response_id: id }).finalResponse();

  assert.equal(final.id, id);
  assert.equal(final.output_text, text(events));
}

export async function cancelledInTheBackground({ client, slow }) {
  const running = await client.responses.create({ model: slow, input: "Hello!", background: true });
  const cancelled = await client.responses.cancel(running.id);
  const again = await client.responses.cancel(running.id);

  assert.deepEqual([cancelled.status, again.status], ["cancelled", "cancelled"]);
  assert.equal((await client.responses.retrieve(running.id)).status, "cancelled");
}

export async function notCancelledIfSynchronous({ client, model }) {
  const answer = await client.responses.create({ model, input: "Hello!" });

  await assert.rejects(client.responses.cancel(answer.id), (error) => {
    assert.ok(error instanceof BadRequestError);
    assert.match(error.message, /Cannot cancel a synchronous response\./);
    return true;
  });
}

export async function modelsAreListed({ client, model }) {
  const listed = await collect(client.models.list());
  const one = await client.models.retrieve(model);

  assert.ok(listed.some((each) => each.id === model && each.object === "model"));
  assert.equal(one.id, model);
  await assert.rejects(client.models.retrieve("none-of-these"), NotFoundError);
  await assert.rejects(client.models.delete(model), (error) => [404, 405].includes(error.status) && error.type !== undefined);
}
