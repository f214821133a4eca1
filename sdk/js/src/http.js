// Outgoing HTTP requests to hosts that the manifest grants. What each name means is in http.d.ts. Not here: streams; a request and its
// answer are whole.

import { PluginError } from "./errors.js";
import { host } from "./host.js";
import { data, text } from "./lower.js";
import { bytesOf, decodeText } from "./text.js";

export class HttpResponse {
  /** @param {number} status @param {[string, string][]} headers @param {Uint8Array} body */
  constructor(status, headers, body) {
    this.status = status;
    this.headers = new Map(headers.map(([name, value]) => [name.toLowerCase(), value]));
    this.body = body;
  }

  text() {
    return decodeText("the answer", this.body);
  }

  json() {
    try {
      return JSON.parse(this.text());
    } catch {
      throw new PluginError("the answer is no JSON");
    }
  }
}

/**
 * @param {string} method
 * @param {string} url
 * @param {{ headers?: Record<string, string>, body?: string | Uint8Array }} [more]
 */
export function send(method, url, { headers = {}, body = new Uint8Array() } = {}) {
  const { http } = host();
  if (http === undefined) throw new PluginError("this component was built without tenon-sdk/http: build it anew");
  const pairs = Object.entries(headers).map(([name, value]) => /** @type {[string, string]} */ ([name, text(`the header ${name}`, value)]));
  const content = data("a request's body", bytesOf(body));
  const answer = http(text("a request's method", method), text("a request's URL", url), pairs, content);
  return new HttpResponse(answer.status, answer.headers, answer.body);
}

/** @param {string} url @param {Record<string, string>} [headers] */
export const get = (url, headers = {}) => send("GET", url, { headers });

/** @param {string} url @param {string | Uint8Array} body @param {Record<string, string>} [headers] */
export const post = (url, body, headers = {}) => send("POST", url, { headers, body });
