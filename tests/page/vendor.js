// Builds the vendored markdown parser from its packages: node vendor.js [--check] <file>
// With --check nothing is written; the exit status says whether the file is what the packages make.

import { build } from "esbuild";
import { readFile, writeFile } from "node:fs/promises";

/** A package that is not used, as one empty class. */
const without = (name) => ({
  name,
  setup({ onResolve, onLoad }) {
    onResolve({ filter: new RegExp(`^${name}$`) }, () => ({ path: name, namespace: "without" }));
    onLoad({ filter: /^/, namespace: "without" }, () => ({ contents: "export default class {}" }));
  },
});

const [file] = process.argv.slice(2).filter((word) => !word.startsWith("--"));
const { outputFiles } = await build({
  entryPoints: ["node_modules/markdown-it/index.mjs"],
  // Nothing here writes entities, so their encoder (23 kB) stays out.
  alias: { entities: "./node_modules/entities/lib/esm/decode.js" },
  // Bare addresses are addresses.js's work (decision 41).
  plugins: [without("linkify-it")],
  banner: { js: "// @ts-nocheck\n/*! markdown-it 14.3.3, MIT licence: see markdown-it.LICENSE.txt and README.txt. */" },
  bundle: true,
  charset: "utf8",
  format: "esm",
  legalComments: "none",
  minify: true,
  write: false,
});
const [{ text }] = outputFiles;
if (!process.argv.includes("--check")) await writeFile(file, text);
else if ((await readFile(file, "utf8")) !== text) {
  console.error("vendor/markdown-it.js is not what its packages make");
  process.exit(1);
}
