// Runs cases against a gateway: node driver.mjs FILE OPTIONS, where OPTIONS is JSON (see NodeSdk in node_sdk.py).
// Writes one JSON object a line: {"report": ...} while a case runs, {"name", "error"} when one has ended (`error` is null
// or a stack), and {"uncalled": [...]} at the end: the methods of the SDK that no case has called.
import OpenAI from "openai";

const CASE_TIMEOUT_MS = 60_000;
const called = new Set();
const methods = new Set();

const write = (line) => process.stdout.write(JSON.stringify(line) + "\n");

/** The parts of a client that stand for endpoints of the Responses protocol, by their path in the SDK. */
const resources = (client) => ({
  responses: client.responses,
  "responses.inputItems": client.responses.inputItems,
  "responses.inputTokens": client.responses.inputTokens,
  conversations: client.conversations,
  "conversations.items": client.conversations.items,
  models: client.models,
});

/** Record which methods of a client are called. */
function observe(client) {
  for (const [path, resource] of Object.entries(resources(client))) {
    for (const name of Object.getOwnPropertyNames(Object.getPrototypeOf(resource))) {
      if (name === "constructor" || typeof resource[name] !== "function") continue;
      methods.add(`${path}.${name}`);
      const method = resource[name].bind(resource);
      resource[name] = (...values) => {
        called.add(`${path}.${name}`);
        return method(...values);
      };
    }
  }
  return client;
}

/** Raise after CASE_TIMEOUT_MS; a case that hangs must fail by its name. */
async function bounded(work) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("the case has not ended in time")), CASE_TIMEOUT_MS);
  });
  try {
    await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

const [file, json] = process.argv.slice(2);
const options = JSON.parse(json);
const clientOf = (apiKey) => observe(new OpenAI({ apiKey, baseURL: `${options.address}/v1`, maxRetries: 0 }));
const given = { ...options, clientOf, report: (value) => write({ report: value }) };
const cases = await import(file);
for (const [name, run] of Object.entries(cases)) {
  if (options.only && options.only !== name) continue;
  let error = null;
  try {
    await bounded(run({ ...given, client: clientOf(options.keys.anna), stranger: clientOf(options.keys.ben) }));
  } catch (fault) {
    error = fault?.stack ?? String(fault);
  }
  write({ name, error });
}
write({ uncalled: [...methods].filter((name) => !called.has(name)).sort() });
process.exit(0);
