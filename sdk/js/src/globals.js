// Puts the host's coarse clock and seeded randomness behind `Date` and `Math.random`: a component has no others (the engine's
// would end it, or say the same in every request). Not here: `clock` and `random`, which are the host's own names for them.

import { clock, random } from "./host.js";

const now = () => Math.floor(clock.unixSeconds() * 1000);

export function useHostsClockAndRandom() {
  const Engines = Date;
  Engines.now = now;
  globalThis.Date = new Proxy(Engines, {
    apply: () => new Engines(now()).toString(),
    construct: (target, given, made) => Reflect.construct(target, given.length === 0 ? [now()] : given, made),
  });
  Math.random = () => random.next() / 2 ** 32;
}
