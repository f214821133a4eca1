#!/usr/bin/env node
// `tenon-sdk build`: esbuild makes one module of a plugin and what it imports, and componentize-qjs (or componentize-js) makes
// that a component. `tenon-sdk test`: the same for tests, which node then runs. Not here: deploying, which is `tenon deploy`.

import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { build as bundle } from "esbuild";

const HELP = `Builds and tests Tenon plugins written in TypeScript or JavaScript.

  tenon-sdk build src/plugin.ts [-o plugin.wasm] [--engine quickjs|starlingmonkey] [--opt-size] [--minify]
  tenon-sdk test [FILE...]            all *.test.ts and *.test.js in test/ unless some are named`;
const COMPONENT_BYTES_MAX = 32 << 20;
const ENGINES = ["quickjs", "starlingmonkey"];
const SOURCES = [".ts", ".js", ".mts", ".mjs"];

/** Why it did not work, and what to do. */
class Failure extends Error {}

/** The folder of the contract: the package's own, or the repository's that it lies in. */
function contract() {
  const isInstalled = import.meta.url.includes("/node_modules/");
  for (const place of isInstalled ? ["../wit"] : ["../../../wit", "../wit"]) {
    const folder = fileURLToPath(new URL(place, import.meta.url));
    if (existsSync(join(folder, "policy.wit"))) return folder;
  }
  throw new Failure("the package lacks its contract (wit/): install tenon-sdk anew");
}

/** @param {string} source @param {string} output @param {string} folder @param {{ engine: string, optSize: boolean, minify: boolean }} options */
async function build(source, output, folder, { engine, optSize, minify }) {
  if (!ENGINES.includes(engine)) throw new Failure(`--engine is ${ENGINES.join(" or ")}, not ${engine}`);
  if (!existsSync(source)) throw new Failure(`${source} is not there`);
  const module = join(folder, "plugin.js");
  const place = (/** @type {string} */ file) => fileURLToPath(new URL(`../src/${file}`, import.meta.url));
  /** @param {string} contents */
  const options = (contents) => ({
    stdin: { contents, resolveDir: dirname(resolve(source)), sourcefile: "entry.js" },
    bundle: true,
    // One copy of the SDK, wherever the plugin's own import of it would lead.
    alias: { "tenon-sdk/agent": place("agent.js"), "tenon-sdk/kv": place("kv.js"), "tenon-sdk/http": place("http.js"), "tenon-sdk": place("index.js") },
    format: /** @type {const} */ ("esm"),
    platform: /** @type {const} */ ("neutral"),
    target: "es2022",
    mainFields: ["module", "main"],
    external: ["tenon:*", "wasi:*"],
    // To componentize-qjs 64 bits are a number, to componentize-js a bigint.
    define: { TENON_BIGINT: String(engine === "starlingmonkey") },
    keepNames: true,
    minify,
    logLevel: /** @type {const} */ ("warning"),
  });
  const plugin = `import plugin from ${JSON.stringify(resolve(source))};`;
  // What the plugin itself imports of the SDK decides which world it is of: a host links what a component imports.
  const { metafile } = await bundle({ ...options(`${plugin} globalThis.plugin = plugin;`), write: false, metafile: true });
  const uses = (/** @type {string} */ file) => Object.keys(metafile.inputs).some((input) => resolve(input) === place(file));
  const [agent, http, kv] = [uses("agent.js"), uses("http.js"), uses("kv.js")];
  if (http && engine === "quickjs") {
    throw new Failure("the plugin imports tenon-sdk/http, which componentize-qjs cannot bind: add --engine starlingmonkey");
  }
  const lent = [agent ? "agent" : "", kv ? "bucket" : "", http ? "http" : ""].filter((name) => name !== "");
  // In this order: what the SDK puts in place of the clock and the dice is there when the plugin is loaded.
  const entry = [
    `import { hooksOf, lend } from ${JSON.stringify(place("component.js"))};`,
    kv ? `import { bucket } from ${JSON.stringify(place("component-kv.js"))};` : "",
    agent ? `import { agent, driverOf } from ${JSON.stringify(place("component-agent.js"))};` : "",
    http ? `import { http } from ${JSON.stringify(place("component-http.js"))};` : "",
    plugin,
    `lend({ ${lent.join(", ")} });`,
    agent ? "export const driver = driverOf(plugin);" : "export const hooks = hooksOf(plugin);",
  ];
  await bundle({ ...options(entry.join("\n")), outfile: module });
  const wasi = engine === "starlingmonkey" && (kv || http) ? "-wasi" : kv ? "-keyvalue" : "";
  const world = `${agent ? "agent" : "policy"}${wasi}`;
  const made = join(folder, "component.wasm");
  if (engine === "quickjs") {
    run("componentize-qjs", program("componentize-qjs"), [
      ...["--wit", contract(), "--world", world, "--js", module, "--sync", "--output", made],
      // It would stub what the plugin asks for, too. Without it the component imports an inert WASI.
      ...(kv ? [] : ["--stub-wasi"]),
      ...(optSize ? ["--opt-size"] : []),
    ]);
  } else {
    run("componentize-js", program("@bytecodealliance/componentize-js"), [
      ...[module, "--wit", contract(), "--world-name", world, "--out", made],
      ...["--disable", "stdio", "random", "clocks", "http", "fetch-event"],
    ]);
  }
  const { size } = statSync(made);
  if (size > COMPONENT_BYTES_MAX) throw new Failure(`the component has ${size} bytes; hosts take at most ${COMPONENT_BYTES_MAX}`);
  return made;
}

/** The file that a package's command is. @param {string} name */
function program(name) {
  for (const from of [import.meta.url, join(process.cwd(), "package.json")]) {
    const require = createRequire(from);
    for (const folder of require.resolve.paths(name) ?? []) {
      const place = join(folder, name, "package.json");
      if (!existsSync(place)) continue;
      const { bin } = require(place);
      return join(folder, name, typeof bin === "string" ? bin : String(Object.values(bin)[0]));
    }
  }
  const wants = name.startsWith("@") ? `${name}@0.23.0 @bytecodealliance/preview2-shim@0.25.0` : name;
  throw new Failure(`there is no ${name}: npm install --save-dev ${wants}`);
}

/** Runs a program of Node's. What it says is told if it fails. @param {string} name @param {string} file @param {string[]} given */
function run(name, file, given) {
  const done = spawnSync(process.execPath, [file, ...given], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  if (done.status !== 0) throw new Failure(`${name} failed:\n${`${done.stdout}${done.stderr}`.trim() || done.error}`);
}

/** @param {string[]} named @param {string} folder */
async function test(named, folder) {
  const ours = (/** @type {string} */ file) => SOURCES.some((end) => file.endsWith(`.test${end}`));
  const files = named.length > 0 ? named : existsSync("test") ? readdirSync("test").filter(ours).map((file) => join("test", file)) : [];
  if (files.length === 0) throw new Failure("there are no tests: name one, or put *.test.ts or *.test.js into test/");
  await bundle({ entryPoints: files, bundle: true, format: "esm", platform: "node", target: "node20", outdir: folder, outExtension: { ".js": ".mjs" }, sourcemap: "inline", logLevel: "warning" });
  const made = readdirSync(folder, { recursive: true }).map(String).filter((file) => file.endsWith(".mjs"));
  const done = spawnSync(process.execPath, ["--enable-source-maps", "--test", ...made.map((file) => join(folder, file))], { stdio: "inherit" });
  return done.status ?? 1;
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      output: { type: "string", short: "o", default: "plugin.wasm" },
      engine: { type: "string", default: "quickjs" },
      "opt-size": { type: "boolean", default: false },
      minify: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  const [command, ...files] = positionals;
  if (values.help || !["build", "test"].includes(command ?? "") || (command === "build" && files.length !== 1)) {
    console.log(HELP);
    return values.help ? 0 : 2;
  }
  const folder = mkdtempSync(join(tmpdir(), "tenon-sdk-"));
  try {
    if (command === "test") return await test(files, folder);
    const options = { engine: values.engine, optSize: values["opt-size"], minify: values.minify };
    const made = await build(files[0], values.output, folder, options);
    mkdirSync(dirname(resolve(values.output)), { recursive: true });
    copyFileSync(made, values.output);
    console.log(`${values.output}: ${(statSync(made).size / 1e6).toFixed(1)} MB`);
    return 0;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  const isOfEsbuild = error instanceof Error && "errors" in error;
  const known = error instanceof Failure || (error instanceof TypeError && "code" in error);
  // esbuild has said what is wrong already.
  console.error(known ? `error: ${error.message}` : isOfEsbuild ? "error: it cannot be bundled (see above)" : error);
  process.exitCode = 1;
}
