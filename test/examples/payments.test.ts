// The example and its demo, run as a new user runs them.
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import Fastify from 'fastify'
import { type Test, test } from 'tap'
import { authenticate } from '../../examples/payments/authenticate.js'
import { countRuns } from '../../examples/payments/count-runs.js'
import { parseEnvironment } from '../../examples/payments/environment.js'
import { paymentRoutes } from '../../examples/payments/payments.js'
import { type RunningApi, start } from '../../examples/payments/start.js'
import { statsRoute } from '../../examples/payments/stats.js'
import { anyDatabase } from '../fixtures/database.js'
import { emptyPostgresDatabase } from '../fixtures/postgres.js'
import { findService, missing } from '../fixtures/services.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const { scripts } = JSON.parse(readFileSync(`${root}/package.json`, 'utf8'))
const noPostgres = await missing('postgres')
const redis = await findService('redis')
const redisUrl = redis instanceof Error ? '' : redis.url
const noCommand = await promisify(execFile)('sh', ['-c', 'curl --version && openssl version']).then(
  () => false,
  () => 'curl or openssl is not on the PATH',
)

// Empty variables, because those of a machine, or of its .env, would lead elsewhere.
const nowhere = {
  DATABASE_URL: '',
  REDIS_URL: '',
  DEMO_URL: '',
  HOST: '',
  PORT: '0',
  LOG_LEVEL: '',
  STRIPE_WEBHOOK_SECRET: '',
  GITHUB_WEBHOOK_SECRET: '',
  BANK_WEBHOOK_SECRET: '',
}

// The server runs the demo as well. In `npm test` each database has one of the two.
const isFull = process.env.FULL === 'true'
const databases = [
  { name: 'PGlite', skip: false, quick: 'demo', url: async () => '' },
  {
    name: 'PostgreSQL',
    skip: noPostgres,
    quick: 'server',
    url: async (t: Test) => (await emptyPostgresDatabase(t)).url,
  },
]

for (const { name, skip, quick, url } of databases) {
  if (isFull || quick === 'demo')
    test(`on ${name}, the demo holds`, { skip }, async (t) => {
      const { code, output } = await demo(t, { DATABASE_URL: await url(t), REDIS_URL: redisUrl })
      t.equal(code, 0, output)
      t.match(output, `(${name}`)
      t.same(tablesOf(output), [heldPayments, heldWebhooks, heldBookings])
      t.match(output, 'Every expectation held')
      t.notMatch(output, /warning/i)
      t.strictSame(tooWide(output), [])
    })

  if (isFull || quick === 'server')
    test(`on ${name}, the server answers the lines that it prints, and ends on SIGTERM`, {
      skip: skip || noCommand,
    }, async (t) => {
      const env = { DATABASE_URL: await url(t) }
      const server = startProcess(t, scripts.start.split(' '), env)
      const welcome = await server.started
      t.notMatch(welcome, /^\{/m, 'no line of the log is between the lines to copy')
      const commands = commandsOf(welcome)
      const [pay = '', payOther = '', list = '', confirm = '', runDemo = ''] = commands

      const [first, second] = [await shell(pay), await shell(pay)]
      t.match(first, /^HTTP\/1.1 201 /)
      t.notMatch(first, /idempotent-replayed/i)
      t.match(second, /^HTTP\/1.1 201 /)
      t.match(second, /^idempotent-replayed: true\r$/im)
      t.equal(bodyOf(second), bodyOf(first))
      t.match(await shell(payOther), /^HTTP\/1.1 422 /)
      t.same(JSON.parse(await shell(list)), [JSON.parse(bodyOf(first))])
      for (const outcome of ['processed', 'duplicate']) {
        const answer = await shell(confirm)
        t.match(answer, /^HTTP\/1.1 200 /)
        t.same(JSON.parse(bodyOf(answer)), { outcome })
      }
      t.same(tablesOf(await shell(runDemo)), [heldPayments, heldWebhooks, heldBookings])

      server.child.kill('SIGTERM')
      t.same(await server.ended, { code: 0, signal: null })
    })
}

test('started again on a database that stays, the API replays what it answered before', {
  skip: noPostgres,
}, async (t) => {
  const { url: databaseUrl } = await emptyPostgresDatabase(t)
  const bodies: string[] = []
  for (const isReplayed of [null, 'true']) {
    const api = await startApi(t, { databaseUrl })
    const answer = await post(api, { key: 'stays' })
    t.equal(answer.status, 201)
    t.equal(answer.headers.get('idempotent-replayed'), isReplayed)
    bodies.push(await answer.text())
    await api.close()
  }
  t.equal(bodies[0], bodies[1])
})

test('a tenant sees its own payments only', async (t) => {
  const api = await startApi(t, await anyDatabaseUrl(t))
  const location = (await post(api, { key: 'a' })).headers.get('location') ?? ''
  t.equal((await get(api, location)).status, 200)
  t.equal((await get(api, location, 'globex-demo-token')).status, 404)
  t.same(await (await get(api, '/payments', 'globex-demo-token')).json(), [])
  t.match(await (await get(api, '/stats')).json(), { handlerRuns: 1, paymentsStored: 1 })
  const stranger = await get(api, location, 'no-such-token')
  t.equal(stranger.status, 401)
  t.equal(stranger.headers.get('www-authenticate'), 'Bearer')
})

test('what cannot be paid is refused and leaves the key free', async (t) => {
  const api = await startApi(t, await anyDatabaseUrl(t))
  for (const amount of [0, -1, 1.5, 2 ** 31, 'much']) {
    t.equal((await post(api, { key: 'a', amount })).status, 400, `${amount}`)
  }
  t.equal((await post(api, { key: 'a' })).status, 201)
})

test('a port that is taken is named, and nothing stays open', async (t) => {
  const { port } = new URL((await startApi(t, await anyDatabaseUrl(t))).url)
  const second = startApi(t, { ...(await anyDatabaseUrl(t)), port: Number(port) })
  const message = `Port ${port} of 127.0.0.1 is taken. Choose another: PORT=${Number(port) + 1} npm start`
  await t.rejects(second, { name: 'CannotStart', message })
})

test('what is wrong with the environment is said, and what is empty is not set', async (t) => {
  t.match(parseEnvironment({ PORT: '', DATABASE_URL: '' }), { port: 3000, databaseUrl: undefined })
  const wrong = { PORT: ['http', '-1', '65536', '1.5'], LOG_LEVEL: ['loud'] }
  for (const [name, values] of Object.entries(wrong)) {
    for (const value of values) {
      const expected = { name: 'CannotStart', message: new RegExp(`${name}.*${value}`) }
      t.throws(() => parseEnvironment({ [name]: value }), expected)
    }
  }
  const mysql = startApi(t, { databaseUrl: 'mysql://somewhere/shop' })
  await t.rejects(mysql, { name: 'CannotStart', message: /^DATABASE_URL must look like/ })
})

test('a database that does not answer is told without its password and without a stack', async (t) => {
  const env = { DATABASE_URL: 'postgresql://somebody:secret@127.0.0.1:1/shop' }
  const { ended, output } = startProcess(t, scripts.start.split(' '), env)
  t.equal((await ended).code, 1)
  t.match(output(), /^Cannot use the database of DATABASE_URL: .*127\.0\.0\.1:1/)
  t.notMatch(output(), /secret|^ +at /m)
})

test('the server does not outlive the npm that started it', {
  skip: process.platform === 'win32' && 'Windows has no SIGTERM',
}, async (t) => {
  const { databaseUrl = '' } = await anyDatabaseUrl(t)
  // A shell that waits for its command, as npm's does on many machines.
  const npm = startProcess(t, ['sh', '-c', `${scripts.start}; true`], {
    DATABASE_URL: databaseUrl,
    npm_lifecycle_event: 'start',
  })
  const { origin } = new URL(/http:\S+/.exec(await npm.started)?.[0] ?? '')
  npm.child.kill('SIGTERM')
  // The output is closed when the last process that can write to it has ended.
  await once(npm.child, 'close')
  await t.rejects(fetch(origin), 'nobody listens any more')
})

test('without the plugin, the demo shows what goes wrong', async (t) => {
  const { prisma } = await anyDatabase(t)
  const app = Fastify()
  const runs = countRuns()
  app.register(async (api) => {
    authenticate(api)
    paymentRoutes(api, prisma, runs)
    statsRoute(api, prisma, runs)
  })
  // As one writes it first: whatever comes is stored.
  app.post('/webhooks/stripe', async () => {
    runs.count('event', 'acme')
    return prisma.confirmation.create({
      data: { tenantId: 'acme', paymentId: '', provider: 'stripe' },
    })
  })
  t.teardown(() => app.close())
  const { code, output } = await demo(t, { DEMO_URL: await app.listen({ port: 0 }) })
  t.equal(code, 1)
  const [payments, webhooks, bookings] = tablesOf(output)
  t.same(payments?.at(-1), [
    'total',
    'requests: 56 · handler runs: 55 · payments stored: 55 · other: 1 × 401',
  ])
  t.same(webhooks?.at(-1), [
    'total',
    'deliveries: 111 · handler runs: 58 · effects stored: 58 · acknowledged: 58 · refused: 53 × 404',
  ])
  t.same(bookings?.at(-1), ['total', 'requests: 214 · answers: 208 × 404, 6 × ends pending'])
  t.match(output, 'Not as expected: "50 identical payments at once"')
})

test('a demo with nobody to talk to says so', async (t) => {
  const { code, output } = await demo(t, { DEMO_URL: 'http://127.0.0.1:1' })
  t.equal(code, 1)
  t.equal(output, 'Nothing answers at DEMO_URL (http://127.0.0.1:1): start it with npm start\n')
})

const heldPayments = [
  [
    '✓ 50 identical payments at once',
    'requests: 50 · handler runs: 1 · payments stored: 1 · replays: 49',
  ],
  ['✓ the same key, another amount', 'requests: 1 · conflicts: 1 × 422'],
  ['✓ the same key, another route', 'requests: 1 · conflicts: 1 × 422'],
  ['✓ the same key, another tenant', 'requests: 1 · handler runs: 1 · payments stored: 1'],
  ['✓ the same key, an unknown tenant', 'requests: 1 · other: 1 × 401'],
  ['✓ no key', 'requests: 1 · other: 1 × 400'],
  ['✓ the first payment once more', 'requests: 1 · replays: 1'],
  [
    'total',
    'requests: 56 · handler runs: 2 · payments stored: 2 · replays: 50 · conflicts: 2 × 422 · other: 1 × 400, 1 × 401',
  ],
]

const heldWebhooks = [
  [
    '✓ Stripe: 50 deliveries of one event at once',
    'deliveries: 50 · handler runs: 1 · effects stored: 1 · acknowledged: 50',
  ],
  ['✓ Stripe: the event once more', 'deliveries: 1 · acknowledged: 1'],
  ['✓ Stripe: one byte changed', 'deliveries: 1 · refused: 1 × 401 · why: no_match'],
  ['✓ Stripe: signed with another secret', 'deliveries: 1 · refused: 1 × 401 · why: no_match'],
  ['✓ Stripe: not signed', 'deliveries: 1 · refused: 1 × 401 · why: missing_header'],
  ['✓ Stripe: signed ten minutes ago', 'deliveries: 1 · refused: 1 × 401 · why: too_old'],
  ['✓ Stripe: signed in ten minutes', 'deliveries: 1 · refused: 1 × 401 · why: from_future'],
  ['✓ Stripe: an event before its payment', 'deliveries: 1 · handler runs: 1 · come back: 1 × 503'],
  [
    '✓ Stripe: it again, after its payment',
    'deliveries: 1 · handler runs: 1 · effects stored: 1 · acknowledged: 1',
  ],
  [
    '✓ GitHub: 50 deliveries of one push at once',
    'deliveries: 50 · handler runs: 1 · effects stored: 1 · acknowledged: 50',
  ],
  ['✓ GitHub: one byte changed', 'deliveries: 1 · refused: 1 × 401 · why: no_match'],
  [
    '✓ bank: three transfers in one request',
    'deliveries: 1 · handler runs: 3 · effects stored: 3 · acknowledged: 1',
  ],
  [
    '✓ bank: the three again, and a fourth',
    'deliveries: 1 · handler runs: 1 · effects stored: 1 · acknowledged: 1',
  ],
  [
    'total',
    'deliveries: 111 · handler runs: 8 · effects stored: 7 · acknowledged: 104 · come back: 1 × 503 · refused: 6 × 401',
  ],
]

const heldBookings = [
  [
    '✓ the three events of a payment, twice, in each of 6 orders',
    'requests: 6 · answers: 6 × ends succeeded · statuses changed: 11',
  ],
  ['✓ 200 guests want the same evening', 'requests: 200 · answers: 1 × got it, 199 × told no'],
  [
    '✓ the one who got it books it, five times',
    'requests: 5 · answers: 1 × got it, 4 × has it · bookings stored: 1',
  ],
  ['✓ an evening that somebody else holds for 3 seconds', 'requests: 1 · answers: 1 × told no'],
  ['✓ the same evening, asked for until it is free', 'requests: 1 · answers: 1 × got it'],
  ['✓ the first one books, too late', 'requests: 1 · answers: 1 × told no'],
  [
    'total',
    'requests: 214 · answers: 6 × ends succeeded, 3 × got it, 4 × has it, 201 × told no · statuses changed: 11 · bookings stored: 1',
  ],
]

/** The rows of the demo's tables: what is marked, and what is counted. */
function tablesOf(output: string): [string, string][][] {
  const tables = output.split('\n\n').filter((text) => /^[✓✗] /.test(text))
  return tables.map((table) =>
    table.split(/\n(?! {4})/).map((row) => {
      const [name = '', ...counts] = row.split(/\n {4}/)
      return [name.trim(), counts.join(' · ')]
    }),
  )
}

function tooWide(output: string): string[] {
  return output.split('\n').filter((line) => line.length > 80)
}

/** What the server prints to be copied: the indented paragraphs. */
function commandsOf(output: string): string[] {
  const paragraphs = output.split(/\n\n/).filter((text) => text.startsWith('  '))
  return paragraphs.map((text) => text.trim())
}

async function shell(command: string): Promise<string> {
  const env = { ...process.env, ...nowhere, NODE_OPTIONS: '' }
  return (await promisify(execFile)('sh', ['-c', command], { cwd: root, env })).stdout
}

function bodyOf(response: string): string {
  return response.slice(response.indexOf('\r\n\r\n') + 4)
}

async function demo(t: Test, env: NodeJS.ProcessEnv) {
  const { ended, output } = startProcess(t, scripts.demo.split(' '), env)
  return { ...(await ended), output: output() }
}

interface ExampleProcess {
  child: ChildProcess
  /** What it printed up to its welcome's last line. */
  started: Promise<string>
  ended: Promise<{ code: number | null; signal: string | null }>
  output: () => string
}

function startProcess(t: Test, [file = '', ...args]: string[], env: NodeJS.ProcessEnv) {
  const child = spawn(file === 'node' ? process.execPath : file, args, {
    cwd: root,
    env: { ...process.env, ...nowhere, NODE_OPTIONS: '', ...env },
  })
  const ended = once(child, 'close').then(([code, signal]) => ({ code, signal }))
  t.teardown(async () => {
    if (child.exitCode === null) child.kill('SIGKILL')
    await ended
  })
  let output = ''
  const started = new Promise<string>((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => {
        output += text
        if (output.includes('Ctrl+C stops it.')) resolve(output)
      })
    }
    child.once('close', () => reject(new Error(`it ended too early: ${output}`)))
  })
  started.catch(() => {}) // not everybody waits for it
  return { child, started, ended, output: () => output } satisfies ExampleProcess
}

/** The API in this process, closed with the test if the test has not closed it. */
async function startApi(
  t: Test,
  { databaseUrl, port = 0 }: { databaseUrl?: string; port?: number },
): Promise<RunningApi> {
  const environment = { ...parseEnvironment({}), port, logLevel: 'silent', databaseUrl }
  const api = await start(environment)
  let closing: Promise<void> | undefined
  const close = () => (closing ??= api.close())
  t.teardown(close)
  return { ...api, close }
}

async function anyDatabaseUrl(t: Test): Promise<{ databaseUrl?: string }> {
  return noPostgres ? {} : { databaseUrl: (await emptyPostgresDatabase(t)).url }
}

function post({ url }: RunningApi, { key, amount = 4900 }: { key: string; amount?: unknown }) {
  return fetch(`${url}/payments`, {
    method: 'POST',
    headers: {
      authorization: 'Bearer acme-demo-token',
      'content-type': 'application/json',
      'idempotency-key': key,
    },
    body: JSON.stringify({ amount, currency: 'EUR' }),
  })
}

function get({ url }: RunningApi, path: string, token = 'acme-demo-token') {
  return fetch(`${url}${path}`, { headers: { authorization: `Bearer ${token}` } })
}
