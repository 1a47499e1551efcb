// Validates resources with a class of a package of @kubernetes-models.
// Arguments: the package's folder, the class's path in it. Standard input: a JSON list of resources. Standard output: a list of faults for each.
import { readFileSync, readdirSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, path] = process.argv.slice(2);
const name = basename(path);
const Model = (await import(pathToFileURL(join(folder, `${path}.js`))))[name];

// What the types declare, by name: the validators let unknown fields pass. Types of other packages (metadata, references) are not looked into.
const types = join(folder, dirname(path));
const declared = new Set();
const wanted = name === "WasmPlugin" ? /^WasmPlugin\.d\.ts$/ : /(ExtensionPolicy|Wasm|TargetReferences).*\.d\.ts$/;
for (const file of readdirSync(types).filter((file) => wanted.test(file))) {
  for (const [, key] of readFileSync(join(types, file), "utf8").matchAll(/"([A-Za-z0-9]+)"\??:/g)) declared.add(key);
}
const foreign = new Set(["apiVersion", "kind"]);
// What anything may stand in, or what another package declares.
const opaque = new Set(["metadata", "config", "pluginConfig", "matchLabels", "targetRefs", "pullSecretRef"]);

function unknown(value, place, found) {
  if (Array.isArray(value)) value.forEach((item, index) => unknown(item, `${place}[${index}]`, found));
  else if (value !== null && typeof value === "object") {
    for (const [key, inner] of Object.entries(value)) {
      if (!declared.has(key) && !foreign.has(key) && key !== "metadata") found.push(`${place}.${key}: no such field`);
      if (!opaque.has(key)) unknown(inner, `${place}.${key}`, found);
    }
  }
  return found;
}

const answers = JSON.parse(readFileSync(0, "utf8")).map((resource) => {
  const faults = unknown(resource, name, []);
  if (resource.apiVersion !== Model.apiVersion || resource.kind !== Model.kind) faults.push("another apiVersion or kind");
  try {
    new Model(resource).validate();
  } catch (error) {
    faults.push(error.message);
  }
  return faults;
});
process.stdout.write(JSON.stringify(answers));
