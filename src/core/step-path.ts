/**
 * Where a step stands in its operation, as text: the handlers that it is a part of, and its own name.
 * Two places never share a path, whatever is in their names, and no path is a name that means
 * something to JavaScript, such as `__proto__`: databases and clients keep it as a property's name.
 */
export function stepPath(scope: readonly string[], name: string): string {
  return JSON.stringify([...scope, name])
}
