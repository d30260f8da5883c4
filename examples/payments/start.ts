import { buildApp } from './app.js'
import { CannotStart } from './cannot-start.js'
import { openDatabase } from './database.js'
import type { Environment } from './environment.js'
import { openRedis } from './redis.js'

export interface RunningApi {
  url: string
  /** What it runs on, for people to read. */
  description: string
  /** Lets requests that are under way finish, then closes everything. */
  close: () => Promise<void>
}

/** Opens what the API needs, and listens. */
export async function start(environment: Environment): Promise<RunningApi> {
  const { host, port, logLevel, databaseUrl, redisUrl, secrets } = environment
  const opened: { close: () => Promise<unknown> }[] = []
  const close = async () => {
    for (const { close } of opened.reverse()) await close()
  }
  try {
    const database = await openDatabase(databaseUrl)
    opened.push(database)
    const redis = redisUrl === undefined ? undefined : await openRedis(redisUrl)
    if (redis) opened.push({ close: async () => redis.disconnect() })
    const services = { ...database, ...(redis && { redis }) }
    const app = await buildApp(services, secrets, { level: logLevel })
    opened.push({ close: () => app.close() })
    redis?.on('error', (error) => app.log.warn({ err: error }, 'Redis does not answer'))

    const url = await app.listen({ host, port }).catch((cause) => {
      throw cannotListen(cause, host, port)
    })
    const redisNote = redis ? ', Redis' : ''
    return { url, description: database.description + redisNote, close }
  } catch (error) {
    await close()
    throw error
  }
}

function cannotListen(cause: NodeJS.ErrnoException, host: string, port: number): CannotStart {
  const message =
    cause.code === 'EADDRINUSE'
      ? `Port ${port} of ${host} is taken. Choose another: PORT=${port + 1} npm start`
      : `Cannot listen on HOST ${host}, PORT ${port}: ${cause.message}`
  return new CannotStart(message, { cause })
}
