// Outgoing requests behind the component's imports, which are the standard's own packages. Loaded inside of a component only, and only
// if the plugin imports `tenon-sdk/http`. Not here: anything that a plugin's author calls.

import { handle } from "wasi:http/outgoing-handler@0.2.12";
import { Fields, OutgoingBody, OutgoingRequest } from "wasi:http/types@0.2.12";

import { HostError } from "./errors.js";
import { bytesOf, decodeText } from "./text.js";

/** Bytes of one read or write: `blocking-write-and-flush` takes no more. */
const PIECE_BYTES = 4096;
const METHODS = ["get", "head", "post", "put", "delete", "connect", "options", "trace", "patch"];
const DENIED = ["HTTP-request-denied", "destination-IP-prohibited"];

/** Gives a handle back at once: the host wants children before their parents. @param {any} handle */
function drop(handle) {
  const dispose = handle[Symbol.dispose ?? Symbol.for("dispose")] ?? handle[Symbol.for("dispose")];
  dispose?.call(handle);
}

/** @type {NonNullable<import("./host.js").Host["http"]>} */
export function http(method, url, headers, body) {
  const what = `${method} ${url.split("/").slice(0, 3).join("/")}`;
  try {
    return answered(outgoing(method, url, headers), body);
  } catch (error) {
    const payload = /** @type {any} */ (error)?.payload;
    if (error instanceof HostError || payload === undefined) throw error;
    const tag = String(payload?.tag ?? payload);
    const said = typeof payload?.val === "string" ? ` (${payload.val})` : "";
    throw new HostError(DENIED.includes(tag) ? "denied" : "failed", `${what}: ${tag}${said}`);
  }
}

/** @param {string} method @param {string} url @param {[string, string][]} headers */
function outgoing(method, url, headers) {
  const parts = /^([a-z]+):\/\/([^/?]+)(.*)$/.exec(url);
  if (parts === null) throw new HostError("failed", `the URL \`${url}\` is none`);
  const [, scheme = "", authority = "", rest = ""] = parts;
  const fields = Fields.fromList(headers.map(([name, value]) => [name, bytesOf(value)]));
  const request = new OutgoingRequest(fields);
  const tag = method.toLowerCase();
  request.setMethod(METHODS.includes(tag) ? { tag } : { tag: "other", val: method });
  request.setScheme(scheme === "http" || scheme === "https" ? { tag: scheme === "http" ? "HTTP" : "HTTPS" } : { tag: "other", val: scheme });
  request.setAuthority(authority);
  request.setPathWithQuery(rest.startsWith("/") ? rest : `/${rest}`);
  return request;
}

/** @param {any} request @param {Uint8Array} body */
function answered(request, body) {
  const content = request.body();
  const future = handle(request, undefined);
  if (body.length > 0) {
    const stream = content.write();
    try {
      for (let at = 0; at < body.length; at += PIECE_BYTES) stream.blockingWriteAndFlush(body.slice(at, at + PIECE_BYTES));
    } catch {
      // Whoever does not take the body says why in the answer.
    }
    drop(stream);
  }
  try {
    OutgoingBody.finish(content, undefined);
  } catch {
    // One that is not whole fails in the answer too.
  }
  const ready = future.subscribe();
  ready.block();
  drop(ready);
  const outer = future.get();
  // A result within a result is a value: its error is not thrown.
  const inner = outer?.tag === "ok" ? outer.val : undefined;
  if (inner === undefined) throw new HostError("failed", "there is no answer");
  if (inner.tag === "err") throw Object.assign(new Error("refused"), { payload: inner.val });
  const response = inner.val;
  const fields = response.headers();
  /** @type {[string, string][]} */
  const headers = fields.entries().map((/** @type {[string, Uint8Array]} */ [name, value]) => [name, decodeText(`the header ${name}`, value)]);
  drop(fields);
  return { status: response.status(), headers, body: read(response.consume()) };
}

/** @param {any} incoming */
function read(incoming) {
  const stream = incoming.stream();
  /** @type {Uint8Array[]} */
  const pieces = [];
  for (;;) {
    try {
      pieces.push(stream.blockingRead(BigInt(PIECE_BYTES)));
    } catch (error) {
      if (/** @type {any} */ (error)?.payload?.tag === "closed") break;
      throw new HostError("failed", "the answer broke off");
    }
  }
  drop(stream);
  drop(incoming);
  const whole = new Uint8Array(pieces.reduce((bytes, piece) => bytes + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
