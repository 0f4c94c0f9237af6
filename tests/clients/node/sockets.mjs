// WebSocket mode, with the SDK's own client of it.
import assert from "node:assert/strict";
import { ResponsesWS } from "openai/resources/responses/ws";

const LAST = ["response.completed", "response.incomplete", "response.failed", "error"];
const WEATHER = {
  type: "function",
  name: "get_weather",
  description: "The weather in a city",
  strict: true,
  parameters: {
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
    additionalProperties: false,
  },
};
const TOO_MUCH = { metadata: { a: "", b: "", c: "" } };

/** One connection. */
class Chat {
  constructor(client, model) {
    this.model = model;
    this.socket = new ResponsesWS(client);
    this.records = this.socket.stream();
  }

  create(fields) {
    this.socket.send({ type: "response.create", model: this.model, ...fields });
  }

  /** Return the next record of the connection that is no step of its opening. */
  async record() {
    for (;;) {
      const { value, done } = await this.records.next();
      assert.ok(!done, "the connection has ended");
      if (!["connecting", "open", "closing"].includes(value.type)) return value;
    }
  }

  /** Return the next message; an `error` message too, which the SDK delivers as an error. */
  async next() {
    const record = await this.record();
    const message = record.message ?? record.error?.error;
    assert.ok(message, record.error?.stack ?? JSON.stringify(record));
    return message;
  }

  /** Return the messages of a turn. */
  async turn(fields) {
    this.create(fields);
    const messages = [await this.next()];
    while (!LAST.includes(messages.at(-1).type)) messages.push(await this.next());
    return messages;
  }

  /** Return the response at the end of a turn, or the `error` message. */
  async ask(fields) {
    const last = (await this.turn(fields)).at(-1);
    return last.response ?? last;
  }
}

const text = (response) => response.output.flatMap((item) => item.content ?? []).map((part) => part.text).join("");

/** Run `talk` on a connection, and close it. */
async function connected({ client, model }, talk) {
  const chat = new Chat(client, model);
  try {
    await talk(chat);
  } finally {
    chat.socket.close();
  }
}

export const oneTurn = (given) =>
  connected(given, async (chat) => {
    const messages = await chat.turn({ input: "Hello!" });

    assert.equal(messages[0].type, "response.created");
    assert.equal(messages.at(-1).type, "response.completed");
    assert.deepEqual(messages.map((message) => message.sequence_number), [...messages.keys()]);
    assert.notEqual(text(messages.at(-1).response), "");
  });

export const severalTurnsInTheirOrder = (given) =>
  connected(given, async (chat) => {
    for (const metadata of [{ a: "1" }, { a: "2" }, { a: "3" }]) chat.create({ input: "Hello!", metadata });
    const ended = [];
    while (ended.length < 3) {
      const message = await chat.next();
      if (LAST.includes(message.type)) ended.push(message.response.metadata.a);
    }

    assert.deepEqual(ended, ["1", "2", "3"]);
  });

export const continuedWithNewInputOnly = (given) =>
  connected(given, async (chat) => {
    const first = await chat.ask({ input: "My name is Emma.", store: false });
    const second = await chat.ask({ input: "What is my name?", store: false, previous_response_id: first.id });

    assert.deepEqual([second.status, second.store, second.previous_response_id], ["completed", false, first.id]);
    if (given.kind === "demo") assert.match(text(second), /Emma/);
    await connected(given, async (other) => {
      const refused = await other.ask({ input: "Hi", store: false, previous_response_id: second.id });

      assert.deepEqual([refused.status, refused.error.code], [400, "previous_response_not_found"]);
    });
  });

export const continuedAfterAReconnect = async (given) => {
  let first;
  await connected(given, async (chat) => {
    first = await chat.ask({ input: "My name is Emma." });
  });
  await connected(given, async (chat) => {
    const second = await chat.ask({ input: "What is my name?", previous_response_id: first.id });

    assert.deepEqual([second.status, second.previous_response_id], ["completed", first.id]);
    if (given.kind === "demo") assert.match(text(second), /Emma/);
  });
};

export const twoLanesAtOnce = (given) =>
  connected(given, async (chat) => {
    chat.create({ input: "Hello!", store: false, stream_id: "a" });
    chat.create({ input: "Hello!", store: false, stream_id: "b" });
    const responses = {};
    while (Object.keys(responses).length < 2) {
      const message = await chat.next();
      assert.ok(["a", "b"].includes(message.stream_id));
      if (message.type === "response.completed") responses[message.stream_id] = message.response.id;
    }
    const fork = { input: "Hi", store: false, previous_response_id: responses.a };

    assert.notEqual(responses.a, responses.b);
    assert.equal((await chat.ask({ ...fork, stream_id: "b" })).status, "completed");
  });

export const aFunctionIsCalledAndAnswered = (given) =>
  connected(given, async (chat) => {
    const tools = { tools: [WEATHER], store: false };
    const first = await chat.ask({ input: "What is the weather in Paris?", ...tools });
    const call = first.output.at(-1);
    const output = { type: "function_call_output", call_id: call.call_id, output: '{"temperature": 21}' };
    const second = await chat.ask({ input: [output], previous_response_id: first.id, ...tools });
    const alone = await chat.ask({ input: [output], ...tools });

    assert.deepEqual([call.type, call.name], ["function_call", "get_weather"]);
    assert.equal(second.status, "completed");
    if (given.kind === "demo") assert.match(text(second), /21/);
    assert.deepEqual([alone.type, alone.status], ["error", 400]);
    assert.match(alone.error.message, /No tool call found for function call output/);
  });

export const aDenialLeavesTheConnectionOpen = (given) =>
  connected(given, async (chat) => {
    const first = await chat.ask({ input: "My name is Emma." });
    const denied = await chat.ask({ input: "Hi", previous_response_id: first.id, ...TOO_MUCH });
    const second = await chat.ask({ input: "What is my name?", previous_response_id: first.id });

    assert.deepEqual([denied.status, denied.error.code], [400, "metadata_limits.too_many_pairs"]);
    assert.ok(denied.error.headers["x-request-id"]);
    assert.equal(second.status, "completed");
  });

export const aFailedContinuationDropsWhatItContinued = (given) =>
  connected(given, async (chat) => {
    const first = await chat.ask({ input: "Hello!", store: false });
    const next = { input: "Hi", store: false, previous_response_id: first.id };
    const denied = await chat.ask({ ...next, ...TOO_MUCH });
    const gone = await chat.ask(next);
    const whole = await chat.ask({ input: "Hello!", store: false });

    assert.equal(denied.error.code, "metadata_limits.too_many_pairs");
    assert.deepEqual([gone.status, gone.error.code], [400, "previous_response_not_found"]);
    assert.equal(whole.status, "completed");
  });

export const steeringIsRefused = (given) =>
  connected(given, async (chat) => {
    const input = [{ type: "message", role: "user", content: [{ type: "input_text", text: "Stop" }] }];
    chat.socket.send({ type: "response.steer", previous_response_id: "resp_1", input });
    const failed = await chat.next();

    const code = given.kind === "native" ? "response_not_found" : "steering_not_supported";

    assert.deepEqual([failed.type, failed.error.code], ["response.steer.failed", code]);
    assert.deepEqual(failed.steer, { previous_response_id: "resp_1", input });
  });
