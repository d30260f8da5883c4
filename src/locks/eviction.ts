import type { Report } from '../events.js'
import type { RedisClientLike } from './redis.js'

/** Warns of a Redis that may forget a lock when its memory is full. Never rejects. */
export async function warnOfEviction(
  clients: readonly RedisClientLike[],
  report: Report,
): Promise<void> {
  const policies = await Promise.all(clients.map(policyOf))
  const policy = policies.find((one) => typeof one === 'string' && one !== 'noeviction')
  if (policy !== undefined) report({ kind: 'redis_may_evict', policy })
}

/** One that does not answer, or may not be asked (as at many hosts), is no reason for a warning. */
async function policyOf(client: RedisClientLike): Promise<string | undefined> {
  try {
    const answer = await client.config('GET', 'maxmemory-policy')
    return Array.isArray(answer) ? answer[1] : undefined
  } catch {
    return undefined
  }
}
