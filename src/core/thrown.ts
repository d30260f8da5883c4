// Application code may throw anything: a Proxy or a getter that throws when it is read. What the library
// does after a failure must not depend on that, so what was thrown is read here alone.

/** A property of what was thrown; `undefined` when it cannot be read. */
export function readThrown(thrown: unknown, name: string): unknown {
  try {
    return Reflect.get(Object(thrown), name)
  } catch {
    return undefined
  }
}

/** `instanceof` that never throws. */
export function isThrown<T>(
  thrown: unknown,
  // biome-ignore lint/suspicious/noExplicitAny: whatever it is made from
  Class: abstract new (...args: any[]) => T,
): thrown is T {
  try {
    return thrown instanceof Class
  } catch {
    return false
  }
}
