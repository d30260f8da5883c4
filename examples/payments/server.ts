// The example as a process of its own: `npm start`.
import { CannotStart } from './cannot-start.js'
import { readEnvironment } from './environment.js'
import { type RunningApi, start } from './start.js'
import { welcome } from './welcome.js'
import { whenToStop } from './when-to-stop.js'

/** How long requests that are under way may take to finish. */
const CLOSE_TIMEOUT_MS = 10_000

let api: RunningApi | undefined

whenToStop(() => {
  // Before it listens, there is nothing that would have to be finished.
  if (api === undefined) process.exit(1)
  setTimeout(() => process.exit(1), CLOSE_TIMEOUT_MS).unref()
  void api.close()
})

try {
  const environment = readEnvironment()
  if (!environment.databaseUrl) console.log('Starting a database inside this process …')
  api = await start(environment)
  console.log(welcome(api))
} catch (error) {
  if (!(error instanceof CannotStart)) throw error
  console.error(error.message)
  process.exitCode = 1
}
