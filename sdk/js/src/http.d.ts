/**
 * Outgoing HTTP requests to hosts that the manifest grants (`grants.http`). Redirects are answers, not followed; in tests the harness
 * answers. A plugin with this is built with `tenon-sdk build --engine starlingmonkey`: the other engine's tool cannot bind it.
 *
 * ```ts
 * import { get } from "tenon-sdk/http";
 * const answer = get("https://facts.example/v1?q=ocean", { authorization: `Bearer ${secrets.get("facts")}` });
 * ```
 */

/** What was answered, whatever the status. */
export class HttpResponse {
  private constructor();
  status: number;
  /** Names in lower case; of several values the last. */
  headers: Map<string, string>;
  body: Uint8Array;
  /** The body as text. Throws a `PluginError` if it is none. */
  text(): string;
  /** The body as JSON. Throws a `PluginError` if it is none. */
  json(): unknown;
}

/** Sends a request and waits for the whole answer. Throws a `HostError` if there is none. */
export function send(
  method: string,
  url: string,
  more?: { headers?: Record<string, string>; body?: string | Uint8Array },
): HttpResponse;
/** `GET` of a URL. */
export function get(url: string, headers?: Record<string, string>): HttpResponse;
/** `POST` to a URL. */
export function post(url: string, body: string | Uint8Array, headers?: Record<string, string>): HttpResponse;
