export interface Backoff {
  readonly firstMs: number
  readonly mostMs: number
}

/**
 * The pause before attempt `attempt` (from 0): doubles up to `mostMs`, and is drawn from its upper
 * half, so that many who started together do not stay together.
 */
export function backoff({ firstMs, mostMs }: Backoff, attempt: number, random: number): number {
  const ceiling = Math.min(mostMs, firstMs * 2 ** Math.min(attempt, 30))
  return ceiling / 2 + (ceiling / 2) * random
}

/**
 * The same with full jitter: drawn from all of it. For what failed together because of one cause,
 * such as a database that was away, and should not come back together.
 */
export function fullJitter({ firstMs, mostMs }: Backoff, attempt: number, random: number): number {
  return Math.min(mostMs, firstMs * 2 ** Math.min(attempt, 30)) * random
}
