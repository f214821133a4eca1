// Puts the contract into the package: it is read from the repository's `wit/`, of which there is one copy. Outside of the
// repository the package has it already.

import { cpSync, existsSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

const contract = fileURLToPath(new URL("../../../wit", import.meta.url));
const place = fileURLToPath(new URL("../wit", import.meta.url));
if (existsSync(contract)) {
  rmSync(place, { recursive: true, force: true });
  cpSync(contract, place, { recursive: true });
} else if (!existsSync(place)) {
  throw new Error("the contract is not there: pack the package from its repository");
}
