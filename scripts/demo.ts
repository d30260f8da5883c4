// Fires at the example payments API what clients and providers may do, and counts what came of it:
//   npm run demo                           starts the API in this process, on a free port
//   DEMO_URL=http://… npm run demo         uses the one that runs there
import { CannotStart } from '../examples/payments/cannot-start.js'
import { type Environment, readEnvironment } from '../examples/payments/environment.js'
import { type RunningApi, start } from '../examples/payments/start.js'
import { playBookings } from './demo/bookings.js'
import { playPayments } from './demo/payments.js'
import { type Row, styled, table } from './demo/table.js'
import { playWebhooks } from './demo/webhooks.js'

/** Plays all scenarios at an API; returns whether everything was as it should be. */
async function demonstrate(url: string, { secrets }: Environment): Promise<boolean> {
  console.log('Clients that retry, or are mistaken')
  const payments = await playPayments(url)
  console.log('\nProviders that deliver again, and others that only say that they are providers')
  const webhooks = await playWebhooks(url, secrets)
  console.log('\nWhat wants the same thing at the same time, or comes in the wrong order')
  const bookings = await playBookings(url, secrets)
  console.log(`\n${[payments, webhooks, bookings].map(table).join('\n\n')}\n`)
  console.log(`Zeros are left out. Providers repeat what is answered 503 because its
event is being processed, and so does this: such a delivery is counted once, and
so is a guest who asks until an evening is free.\n`)
  return tellWhether([...payments, ...webhooks, ...bookings])
}

function tellWhether(rows: readonly Row[]): boolean {
  const failed = rows.filter(({ isExpected }) => !isExpected)
  if (failed.length === 0) {
    console.log(
      styled('green', 'Every expectation held, and every replay was the same to the byte.'),
    )
  } else {
    const names = failed.map(({ name }) => `"${name}"`).join(', ')
    console.log(styled('red', `Not as expected: ${names}`))
  }
  return failed.length === 0
}

/** The API that DEMO_URL names, or one of our own. */
async function findApi(environment: Environment): Promise<RunningApi> {
  const url = process.env.DEMO_URL?.replace(/\/+$/, '')
  if (!url) {
    console.log('Starting the payments API …')
    return start({ ...environment, host: '127.0.0.1', port: 0, logLevel: 'error' })
  }
  await fetch(url).catch((cause) => {
    throw new CannotStart(`Nothing answers at DEMO_URL (${url}): start it with npm start`, {
      cause,
    })
  })
  return { url, description: 'DEMO_URL', close: async () => {} }
}

try {
  const environment = readEnvironment()
  const api = await findApi(environment)
  console.log(`Payments API on ${api.url}\n(${api.description})\n`)
  try {
    if (!(await demonstrate(api.url, environment))) process.exitCode = 1
  } finally {
    await api.close()
  }
} catch (error) {
  if (!(error instanceof CannotStart)) throw error
  console.error(error.message)
  process.exitCode = 1
}
