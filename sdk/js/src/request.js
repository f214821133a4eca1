// Typed access to what the caller asked for.

import { PluginError } from "./errors.js";
import { Message, Prompt } from "./values.js";

export class Request {
  /** @param {Partial<import("./index.d.ts").RequestFields>} fields */
  constructor(fields = {}) {
    this.id = fields.id ?? "";
    this.function = fields.function ?? "";
    this.version = fields.version ?? 1;
    this.text = fields.text ?? "";
    this.inputJson = fields.inputJson ?? "null";
    this.messages = fields.messages ?? [];
    this.parameters = fields.parameters ?? new Map();
    this.stream = fields.stream ?? false;
    this.maxTokens = fields.maxTokens ?? undefined;
  }

  /** @param {string} name */
  parameter(name) {
    return this.parameters.get(name);
  }

  /**
   * @template T
   * @param {string} name
   * @param {(text: string) => T} parse
   * @returns {T | undefined}
   */
  parameterAs(name, parse) {
    const text = this.parameters.get(name);
    if (text === undefined) return undefined;
    const invalid = new PluginError(`the parameter \`${name}\` is not valid: ${text}`);
    try {
      const value = parse(text);
      if (!Number.isNaN(value)) return value;
    } catch {
      throw invalid;
    }
    throw invalid;
  }

  /** @returns {any} */
  json() {
    return JSON.parse(this.inputJson);
  }

  conversation() {
    return this.messages.length > 0 ? [...this.messages] : [Message("user", this.text)];
  }

  prompt() {
    return Prompt.messages(this.conversation());
  }
}
