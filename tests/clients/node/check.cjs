// npm's `openai`, unmodified, against a running server: each check prints one line. tests/it/clients.rs starts the server,
// sets the environment, and counts the lines.
"use strict";

const assert = require("node:assert/strict");
const OpenAI = require("openai");
const { VERSION } = require("openai/version");

const env = process.env;
const URL = `${env.TENON_URL}/v1`;
const QUESTION = [{ role: "user", content: "What is the capital of France?" }];
const ANSWER = "The capital of France is Paris.";
const DATE = [{ role: "system", content: "ISO date." }, { role: "user", content: "December 7th, 1997" }];
const options = { baseURL: URL, apiKey: env.TENON_KEY, maxRetries: 0, timeout: 240_000 };
const client = new OpenAI(options);

const chat = (more = {}) =>
  client.chat.completions.create({ model: "base", messages: QUESTION, max_tokens: 16, temperature: 0, ...more });
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function chunks(stream) {
  const all = [];
  for await (const chunk of stream) all.push(chunk);
  return all;
}

const text = (all) => all.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");

async function raised(kind, call) {
  try {
    await call();
  } catch (error) {
    assert.equal(error.constructor, kind, `${error.constructor.name} is not ${kind.name}: ${error.message}`);
    return error;
  }
  throw new Error(`nothing of ${kind.name} was raised`);
}

async function waitingRequests() {
  const metrics = await (await fetch(`${env.TENON_BUSY_URL}/metrics`)).text();
  const lines = metrics.split("\n").filter((line) => line.startsWith("vllm:num_requests_waiting"));
  return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}

const checks = {
  async it_is_the_pinned_version() {
    assert.equal(VERSION, env.TENON_CLIENT_VERSION);
  },

  async chat_answers_with_usage_and_a_request_id() {
    const answer = await chat();
    assert.equal(answer.choices[0].message.content, ANSWER);
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    assert.match(answer._request_id, /^req_/);
  },

  async a_streamed_chat_says_the_same() {
    const all = await chunks(await chat({ stream: true }));
    assert.equal(all[0].choices[0].delta.role, "assistant");
    assert.equal(text(all), ANSWER);
    assert.equal(all.at(-1).choices[0].finish_reason, "stop");
  },

  async the_stream_helper_puts_the_chunks_together() {
    const runner = client.chat.completions.stream({ model: "base", messages: QUESTION, max_tokens: 16, temperature: 0 });
    const whole = await runner.finalChatCompletion();
    assert.equal(whole.choices[0].message.content, ANSWER);
  },

  async the_usage_chunk_comes_last_when_asked_for() {
    const all = await chunks(await chat({ stream: true, stream_options: { include_usage: true } }));
    assert.deepEqual(all.at(-1).choices, []);
    assert.equal(all.at(-1).usage.prompt_tokens, (await chat()).usage.prompt_tokens);
  },

  async completions_whole_and_streamed() {
    const body = { model: "base", prompt: "The capital of France is", max_tokens: 8, temperature: 0 };
    const whole = await client.completions.create(body);
    const all = await chunks(await client.completions.create({ ...body, stream: true }));
    assert.equal(all.map((chunk) => chunk.choices[0].text).join(""), whole.choices[0].text);
    assert.equal(whole.choices[0].finish_reason, "length");
  },

  async a_stop_string_ends_the_text_before_it() {
    const answer = await chat({ stop: ["Par"] });
    assert.equal(answer.choices[0].message.content, "The capital of France is ");
    assert.equal(text(await chunks(await chat({ stop: "Par", stream: true }))), "The capital of France is ");
  },

  async a_seed_makes_sampling_repeatable() {
    const ask = async (seed) => (await chat({ temperature: 1.5, seed, max_tokens: 24 })).choices[0].message.content;
    const first = await ask(7);
    assert.equal(await ask(7), first);
    const others = [await ask(8), await ask(9), await ask(10)];
    assert.ok(others.some((other) => other !== first), "another seed never changed anything");
  },

  async log_probabilities_of_chats_and_completions() {
    const chosen = (await chat({ logprobs: true, top_logprobs: 3 })).choices[0].logprobs.content;
    assert.ok(chosen.length > 3 && chosen.every((token) => token.top_logprobs[0].logprob === token.logprob));
    const body = { model: "base", prompt: "The capital of France is", max_tokens: 4, temperature: 0, logprobs: 2 };
    const answer = await client.completions.create(body);
    assert.equal(answer.choices[0].logprobs.tokens.join(""), answer.choices[0].text);
  },

  async several_choices_whole_and_streamed() {
    const sampled = { n: 3, temperature: 1.5, seed: 3 };
    const whole = (await chat(sampled)).choices;
    assert.deepEqual(whole.map((choice) => choice.index), [0, 1, 2]);
    const texts = whole.map((choice) => choice.message.content);
    assert.ok(new Set(texts).size > 1, texts);
    const streamed = ["", "", ""];
    for await (const chunk of await chat({ ...sampled, stream: true })) {
      for (const choice of chunk.choices) streamed[choice.index] += choice.delta.content ?? "";
    }
    assert.deepEqual(streamed, texts);
  },

  async biases_change_the_answer() {
    const body = { model: "base", prompt: "one one one one", max_tokens: 8, temperature: 0, return_token_ids: true };
    const ids = async (more) => (await client.completions.create({ ...body, ...more })).choices[0].token_ids;
    const [first] = await ids({});
    assert.ok(!(await ids({ logit_bias: { [first]: -100 } })).includes(first));
  },

  async tools_are_refused_by_a_base_that_has_no_place_for_them() {
    const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
    assert.equal((await raised(OpenAI.BadRequestError, () => chat({ tools }))).code, "unsupported");
    assert.equal((await chat({ tools, tool_choice: "none" })).choices[0].message.content, ANSWER);
  },

  async models_are_listed_and_retrieved() {
    const owners = {};
    for await (const model of client.models.list()) owners[model.id] = model.owned_by;
    assert.deepEqual([owners.base, owners["iso-date"], owners.skills], ["tenon", "adapter", "function"]);
    assert.equal((await client.models.retrieve("skills")).id, "skills");
  },

  async adapters_and_functions_are_models_and_adapters_compose() {
    const ask = async (more) => (await chat({ messages: DATE, ...more })).choices[0].message.content;
    assert.equal(await ask({ model: "iso-date" }), "1997-12-07");
    assert.equal(await ask({ model: "skills", messages: DATE.slice(1) }), "1997-12-07");
    assert.equal(await ask({ adapters: [{ name: "iso-date", weight: 1 }] }), "1997-12-07");
    assert.notEqual(await ask({}), "1997-12-07");
  },

  async aborting_a_stream_cancels_the_request() {
    const { data: stream, response } = await chat({ stream: true, max_tokens: 1000, ignore_eos: true }).withResponse();
    for await (const _ of stream) break; // leaving the loop aborts
    const receipt = response.headers.get("x-tenon-receipt");
    let kind;
    for (let turn = 0; turn < 400 && kind !== "cancelled"; turn += 1) {
      await sleep(50);
      kind = (await client.get(`/receipts/${receipt}`)).kind;
    }
    assert.equal(kind, "cancelled");
  },

  async many_streams_at_once() {
    const one = async () => text(await chunks(await chat({ stream: true })));
    assert.deepEqual(new Set(await Promise.all(Array.from({ length: 6 }, one))), new Set([ANSWER]));
  },

  async errors_are_what_their_status_says() {
    const without = (apiKey) => new OpenAI({ ...options, apiKey });
    const denied = await raised(OpenAI.AuthenticationError, () => without("tk_wrong").models.list());
    assert.deepEqual([denied.status, denied.code], [401, "unauthorized"]);
    const forbidden = await raised(OpenAI.PermissionDeniedError, () => without(env.TENON_KEY_WITHOUT_INVOKE).models.list());
    assert.deepEqual([forbidden.status, forbidden.code], [403, "forbidden"]);
    const missing = await raised(OpenAI.NotFoundError, () => chat({ model: "nobody" }));
    assert.deepEqual([missing.code, missing.param], ["model_not_found", "model"]);
    assert.match(missing.requestID, /^req_/);
    const senseless = await raised(OpenAI.BadRequestError, () => chat({ temperature: -1 }));
    assert.equal(senseless.param, "temperature");
    const tenant = () => client.post("/tenants", { body: { name: "clients-node" } });
    await tenant();
    assert.equal((await raised(OpenAI.ConflictError, tenant)).code, "tenant_exists");
  },

  async errors_of_functions_are_what_their_status_says() {
    const say = (model, content, more) => chat({ model, messages: [{ role: "user", content }], ...more });
    const refused = await raised(OpenAI.UnprocessableEntityError, () => say("clients-bad-plan", "reject"));
    assert.match(refused.code, /^rejected/);
    const failed = await raised(OpenAI.InternalServerError, () => say("clients-trap", "panic"));
    assert.deepEqual([failed.status, failed.code], [502, "plugin_trap"]);
  },

  async an_error_in_mid_stream_is_an_api_error() {
    const messages = [{ role: "user", content: "chunk" }];
    const stream = await chat({ model: "clients-trap", messages, stream: true });
    const error = await raised(OpenAI.APIError, () => chunks(stream));
    assert.equal(error.code, "plugin_trap");
  },

  async a_client_that_does_not_wait_times_out() {
    const slow = new OpenAI({ ...options, timeout: 300 });
    const body = { model: "base", prompt: "a", max_tokens: 1000, ignore_eos: true };
    await raised(OpenAI.APIConnectionTimeoutError, () => slow.completions.create(body));
  },

  // One request runs and holds the memory, one waits and holds the queue; the third is refused until they leave.
  async a_full_queue_is_a_rate_limit_error_and_the_client_waits_as_told() {
    const asked = [];
    const counted = (url, init) => {
      asked.push(performance.now());
      return fetch(url, init);
    };
    const there = { ...options, baseURL: `${env.TENON_BUSY_URL}/v1`, apiKey: env.TENON_BUSY_KEY };
    const busy = new OpenAI(there);
    const fill = (token) =>
      busy.completions.create({ model: "base", prompt: Array(800).fill(token), max_tokens: 200, stream: true, ignore_eos: true });
    const small = (who) => who.completions.create({ model: "base", prompt: "a", max_tokens: 1 });
    const first = await fill(1000);
    const events = first[Symbol.asyncIterator]();
    await events.next();
    const waiting = fill(2000).then(chunks);
    for (let turn = 0; turn < 1000 && (await waitingRequests()) === 0; turn += 1) await sleep(20);
    const refused = await raised(OpenAI.RateLimitError, () => small(busy));
    assert.deepEqual([refused.code, refused.headers.get("retry-after")], ["queue_full", "1"]);
    setTimeout(() => first.controller.abort(), 1500);
    const patient = new OpenAI({ ...there, maxRetries: 20, fetch: counted });
    assert.equal((await small(patient)).choices.length, 1);
    // Left to itself the client would come back within half a second.
    assert.ok(asked.length > 1 && asked[1] - asked[0] > 900, `the client asked at ${asked}`);
    await waiting;
  },
};

(async () => {
  for (const [name, run] of Object.entries(checks)) {
    try {
      await run();
      console.log(`ok ${name}`);
    } catch (error) {
      process.exitCode = 1;
      console.log(`FAILED ${name}`);
      console.error(error);
    }
  }
})();
