// The imports of a component, which the toolchain binds to the contract in `wit/`; `component.js` alone sees them.

declare module "tenon:plugin/catalog@0.1.0" {
  export function adapters(): import("./index.d.ts").Adapter[];
  export function prefetch(adapters: string[]): void;
}

declare module "tenon:plugin/log@0.1.0" {
  export function write(level: string, message: string): void;
}

declare module "tenon:plugin/clock@0.1.0" {
  export function elapsedMs(): number;
  export function unixSeconds(): number;
}

declare module "tenon:plugin/random@0.1.0" {
  export function bytes(count: number): Uint8Array;
  export function next(): number;
}

declare module "tenon:plugin/config@0.1.0" {
  export function get(name: string): string | null | undefined;
  export function all(): [string, string][];
}

declare module "tenon:plugin/functions@0.1.0" {
  export function call(
    name: string,
    input: import("./index.d.ts").CallInput,
    maxTokens: number | undefined,
  ): Omit<import("./index.d.ts").Reply, "metadata"> & { metadata: { name: string; value: string }[] };
}

declare module "tenon:plugin/tools@0.1.0" {
  export function list(server: string): import("./index.d.ts").Tool[];
  export function call(server: string, tool: string, json: string): import("./index.d.ts").ToolOutcome;
}

declare module "tenon:plugin/sessions@0.1.0" {
  export const Session: { open: (opening: any) => any };
}

declare module "tenon:plugin/output@0.1.0" {
  export function write(text: string): void;
}

declare module "tenon:plugin/secrets@0.1.0" {
  export function get(name: string): string;
}

declare module "tenon:plugin/tokenizer@0.1.0" {
  export function encode(text: string): Uint32Array | number[];
  export function decode(tokens: Uint32Array): string;
  export function count(text: string): number;
}

declare module "wasi:keyvalue/store@0.2.0-draft2" {
  export function open(name: string): any;
}

declare module "wasi:keyvalue/atomics@0.2.0-draft2" {
  export function increment(bucket: any, key: string, delta: bigint | number): bigint | number;
  export function swap(cas: any, value: Uint8Array): void;
  export const Cas: { new: (bucket: any, key: string) => any };
}

declare module "wasi:http/types@0.2.12" {
  export const Fields: any;
  export const OutgoingBody: any;
  export const OutgoingRequest: any;
}

declare module "wasi:http/outgoing-handler@0.2.12" {
  export function handle(request: any, options: undefined): any;
}

/** What the build says of the engine. */
declare const TENON_BIGINT: boolean;
