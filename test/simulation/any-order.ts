/** What no clause puts in an order. */
export function inAnyOrder<T>(items: readonly T[]): T[] {
  const shuffled = [...items]
  for (let n = shuffled.length - 1; n > 0; n -= 1) {
    const other = Math.floor(Math.random() * (n + 1))
    const one = shuffled[n] as T
    shuffled[n] = shuffled[other] as T
    shuffled[other] = one
  }
  return shuffled
}
