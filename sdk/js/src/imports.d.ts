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
