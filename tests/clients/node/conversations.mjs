// Conversations and their items: every method of the SDK, and a response in one.
import assert from "node:assert/strict";
import { NotFoundError } from "openai";

const collect = async (pages) => {
  const found = [];
  for await (const each of pages) found.push(each);
  return found;
};

const user = (content) => ({ type: "message", role: "user", content });

export async function created({ client }) {
  const empty = await client.conversations.create();
  const full = await client.conversations.create({ items: [user("One")], metadata: { topic: "a" } });

  assert.equal(empty.object, "conversation");
  assert.deepEqual(empty.metadata, {});
  assert.deepEqual(full.metadata, { topic: "a" });
  assert.deepEqual(await client.conversations.retrieve(full.id), full);
  assert.equal((await collect(client.conversations.items.list(full.id))).length, 1);
}

export async function updatedAndDeleted({ client, stranger }) {
  const { id } = await client.conversations.create({ metadata: { topic: "a" } });
  const updated = await client.conversations.update(id, { metadata: { topic: "b" } });

  assert.deepEqual(updated.metadata, { topic: "b" });
  assert.deepEqual(await client.conversations.retrieve(id), updated);
  await assert.rejects(stranger.conversations.retrieve(id), NotFoundError);
  await assert.rejects(stranger.conversations.delete(id), NotFoundError);
  assert.deepEqual(await client.conversations.delete(id), { id, object: "conversation.deleted", deleted: true });
  await assert.rejects(client.conversations.retrieve(id), NotFoundError);
}

export async function itemsAreListedInPages({ client }) {
  const { id } = await client.conversations.create({ items: ["1", "2", "3"].map(user) });
  const added = await client.conversations.items.create(id, { items: ["4", "5"].map(user) });
  const oldest = await collect(client.conversations.items.list(id, { order: "asc", limit: 2 }));
  const newest = await client.conversations.items.list(id, { limit: 2 });
  const after = await client.conversations.items.list(id, { order: "asc", after: oldest[2].id });

  assert.deepEqual(oldest.map((item) => item.content[0].text), ["1", "2", "3", "4", "5"]);
  assert.deepEqual(added.data, oldest.slice(3));
  assert.deepEqual(newest.data, oldest.toReversed().slice(0, 2));
  assert.deepEqual([newest.has_more, newest.last_id], [true, oldest[3].id]);
  assert.deepEqual(after.data, oldest.slice(3));
}

export async function anItemIsRetrievedAndDeleted({ client, stranger }) {
  const conversation = await client.conversations.create({ items: [user("One"), user("Two")] });
  const [first, second] = await collect(client.conversations.items.list(conversation.id, { order: "asc" }));
  const place = { conversation_id: conversation.id };

  assert.deepEqual(await client.conversations.items.retrieve(first.id, place), first);
  await assert.rejects(stranger.conversations.items.retrieve(first.id, place), NotFoundError);
  await assert.rejects(stranger.conversations.items.delete(first.id, place), NotFoundError);
  assert.deepEqual(await client.conversations.items.delete(first.id, place), conversation);
  await assert.rejects(client.conversations.items.retrieve(first.id, place), NotFoundError);
  assert.deepEqual(await collect(client.conversations.items.list(conversation.id)), [second]);
}

export async function aResponseIsAdded({ client, stranger, model, kind }) {
  const greeting = { type: "message", role: "assistant", content: "Nice to meet you, Emma." };
  const { id } = await client.conversations.create({ items: [user("My name is Emma."), greeting] });
  const answer = await client.responses.create({ model, input: "What is my name?", conversation: id });
  const items = await collect(client.conversations.items.list(id, { order: "asc" }));

  assert.equal(answer.conversation.id, id);
  assert.deepEqual(items.map((item) => item.role), ["user", "assistant", "user", "assistant"]);
  assert.equal(items[3].id, answer.output[0].id);
  if (kind === "demo") assert.match(answer.output_text, /Emma/);
  await assert.rejects(stranger.responses.create({ model, input: "Hi", conversation: { id } }), NotFoundError);
}
