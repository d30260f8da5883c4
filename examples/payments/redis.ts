import { Redis } from 'ioredis'
import { CannotStart } from './cannot-start.js'

/** A connected client. */
export async function openRedis(url: string): Promise<Redis> {
  // Redis only counts new keys here, and the plugin lets a key in that cannot be counted: while
  // Redis is away, commands should fail at once instead of keeping requests waiting.
  const redis = new Redis(url, {
    lazyConnect: true,
    connectTimeout: 2_000,
    maxRetriesPerRequest: 1,
    enableOfflineQueue: false,
  })
  let lastError: Error | undefined
  redis.on('error', (error) => {
    lastError = error
  })
  try {
    await redis.connect()
  } catch (error) {
    redis.disconnect()
    const { message } = lastError ?? (error as Error)
    throw new CannotStart(`Cannot use the Redis of REDIS_URL: ${message}`, { cause: error })
  }
  return redis
}
