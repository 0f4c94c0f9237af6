// A gateway that gets SIGTERM while a connection is open; the test sends the signal when a case reports.
import assert from "node:assert/strict";
import { ResponsesWS } from "openai/resources/responses/ws";

/** Open a connection, send a call, wait for a message of this type, report, and return all records after it. */
async function recordsAfter(type, { client, model, report }) {
  const socket = new ResponsesWS(client);
  const later = [];
  let found = false;
  for await (const record of socket.stream()) {
    if (record.type === "open") socket.send({ type: "response.create", model, input: "Hello!" });
    else if (found) later.push(record);
    else if (record.message?.type === type) {
      found = true;
      report(type);
    }
  }
  return later;
}

export async function idle({ report, ...given }) {
  const records = await recordsAfter("response.completed", { ...given, report });
  const closed = records.at(-1);

  assert.deepEqual(records.filter((record) => record.type === "message"), []);
  assert.deepEqual([closed.type, closed.code], ["close", 1001]);
}

export async function inATurn({ slow, ...given }) {
  const records = await recordsAfter("response.created", { ...given, model: slow });
  const messages = records.filter((record) => record.type === "message").map((record) => record.message);
  const ended = messages.filter((message) => /^response\.(completed|incomplete|failed)$|^error$/.test(message.type));
  const closed = records.at(-1);

  assert.deepEqual(ended.map((message) => message.type), ["response.failed"]);
  assert.equal(messages.at(-1), ended[0]);
  assert.equal(ended[0].response.status, "failed");
  assert.deepEqual([closed.type, closed.code], ["close", 1001]);
}
