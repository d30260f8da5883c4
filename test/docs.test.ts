import { execFile } from 'node:child_process'
import { generateKeyPairSync } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { FastifyError, FastifyReply } from 'fastify'
import t from 'tap'
import { parseDuration } from '../src/core/duration.js'
import * as errors from '../src/errors.js'
import { problem } from '../src/http/problem.js'
import { RECOVER_DEFAULTS } from '../src/operations/options.js'
import { ATOMIC_DEFAULTS, DEFAULTS } from '../src/options.js'
import { WEBHOOK_DEFAULTS } from '../src/webhooks/options.js'
import type { Provider } from '../src/webhooks/provider.js'
import * as providers from '../src/webhooks/providers/index.js'
import { pgliteDatabase } from './fixtures/pglite.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const read = (path: string) => readFile(new URL(`../${path}`, import.meta.url), 'utf8')
/** Takes the status and headers of an answer that is not sent. */
const UNSENT = { code: () => UNSENT, header: () => UNSENT } as unknown as FastifyReply
const unique = (found: Iterable<RegExpMatchArray>) =>
  [...new Set([...found].map((match) => match[1] as string))].sort()

t.test('docs/errors.md describes every code with its status, and no other', async (t) => {
  const rows = new Map<string, string | undefined>()
  for (const line of (await read('docs/errors.md')).split('\n')) {
    const code = /`(IDEMPOTENCY_\w+)`/.exec(line)?.[1]
    if (line.startsWith('|') && code) rows.set(code, /^\| (\d{3}) \|/.exec(line)?.[1])
  }
  const codes = Object.values(errors).map((Error_) => {
    const error = new Error_('x', 'y') as { code: string; statusCode?: number }
    const status = rows.get(error.code)
    if (status !== undefined) t.equal(String(error.statusCode), status, error.code)
    return error.code
  })
  t.strictSame([...rows.keys()].sort(), codes.sort())
})

t.test(
  'the type of every problem document leads to an anchor in the row of its code',
  async (t) => {
    const rows = new Map<string, string>()
    for (const line of (await read('docs/errors.md')).split('\n')) {
      for (const [, anchor = ''] of line.matchAll(/<a id="([^"]*)"><\/a>/g)) {
        t.notOk(rows.has(anchor), `${anchor} is there once`)
        rows.set(anchor, line)
      }
    }
    t.match(new URL(DEFAULTS.docs).pathname, /\/docs\/errors\.md$/)
    for (const Error_ of Object.values(errors)) {
      const error = new Error_('x', 'y') as FastifyError
      const { type } = JSON.parse(problem(UNSENT, DEFAULTS.docs, error).toString())
      const row = rows.get(new URL(type).hash.slice(1))
      t.ok(row?.startsWith('|') && row.includes(`\`${error.code}\``), type)
    }
  },
)

t.test('docs/operations.md describes every event with its level, and no other', async (t) => {
  const text = await read('src/events.ts')
  const levels = new Map(
    [...text.matchAll(/^ {2}(\w+): \[\s*'(debug|info|warn|error)'/gm)].map((m) => [m[1], m[2]]),
  )
  const kinds = unique(text.matchAll(/readonly kind: '(\w+)'/g))
  t.strictSame([...levels.keys()].sort(), kinds)
  const described: string[] = []
  for (const line of (await read('docs/operations.md')).split('\n')) {
    const cells = line.split('|').map((cell) => cell.trim())
    const names = unique((cells[1] ?? '').matchAll(/`(\w+)`/g))
    if (line.startsWith('| `')) {
      for (const name of names) t.ok(cells[2]?.includes(levels.get(name) as string), name)
      described.push(...names)
    }
  }
  t.strictSame(described.sort(), kinds)
})

/** The rows of the tables under a heading, by the name that each begins with. */
async function rowsUnder(file: string, heading: string): Promise<Map<string, string[]>> {
  const sections = (await read(file)).split(/^(?=## )/m)
  const section = sections.find((text) => text.startsWith(`## ${heading}`)) ?? ''
  return new Map(
    section.split('\n').flatMap((line) => {
      const cells = line.split('|').map((cell) => cell.trim())
      const name = /^`(\w+)`$/.exec(cells[1] ?? '')?.[1]
      return line.startsWith('|') && name ? [[name, cells.slice(2, -1)] as const] : []
    }),
  )
}

/** The names of an interface's members, and those of what it extends if they are given, too. */
async function membersOf(files: string | string[], ...names: string[]): Promise<string[]> {
  const text = (await Promise.all([files].flat().map(read))).join('\n')
  const bodies = names.map((name) => {
    const start = text.search(new RegExp(`export interface ${name}\\b`))
    return text.slice(start, text.indexOf('\n}', start))
  })
  return unique(bodies.join('\n').matchAll(/^ {2}(\w+)\??:/gm))
}

/** A default as a document writes it. */
function written(value: unknown): string[] {
  if (typeof value === 'string') return [`'${value}'`]
  if (typeof value === 'number') return [value === 1024 * 1024 ? '1 MiB' : String(value)]
  const isPlain = typeof value === 'object' && value !== null && !Array.isArray(value)
  return isPlain ? Object.values(value).flatMap(written) : []
}

const tables = [
  {
    heading: 'Of the plugin',
    options: () => membersOf('src/options.ts', 'PluginOptions'),
    defaults: DEFAULTS,
  },
  {
    heading: 'Of a route',
    options: () => membersOf('src/options.ts', 'RouteOptions'),
    defaults: DEFAULTS,
  },
  {
    heading: 'Of `run()`',
    options: () => membersOf('src/operations/options.ts', 'RunOptions', 'OperationTimes'),
    defaults: { onLeaseExpired: 'rerun', wait: 0 },
  },
  {
    heading: 'Of `recover()`',
    options: () => membersOf('src/operations/options.ts', 'RecoverOptions'),
    defaults: RECOVER_DEFAULTS,
  },
  {
    heading: 'Of `resolve()`',
    options: () => membersOf('src/operations/options.ts', 'ResolveOptions'),
    defaults: {},
  },
  {
    heading: 'Of `atomic',
    options: () => membersOf('src/options.ts', 'AtomicOptions'),
    defaults: ATOMIC_DEFAULTS,
  },
  {
    heading: 'Of a webhook',
    options: () => membersOf('src/webhooks/options.ts', 'WebhookOptions'),
    defaults: WEBHOOK_DEFAULTS,
  },
  {
    heading: 'Of `inProcess',
    options: () => membersOf('src/dispatch/in-process.ts', 'InProcessOptions'),
    defaults: { concurrency: 10, pollEvery: '5s' },
  },
  {
    heading: 'Of `bullmq',
    options: () => membersOf('src/dispatch/bullmq.ts', 'BullmqOptions'),
    defaults: { queue: 'webhooks', concurrency: 10, sweepEvery: '10s' },
  },
  {
    file: 'docs/providers.md',
    heading: '`hmac`',
    options: () =>
      membersOf(
        ['src/webhooks/providers/hmac.ts', 'src/webhooks/providers/options.ts'],
        'HmacOptions',
        'TolerantOptions',
        'SecretOptions',
      ),
    defaults: {},
  },
]

for (const { file = 'docs/options.md', heading, options, defaults } of tables) {
  t.test(
    `${file}, "${heading}", describes every option with its default, and no other`,
    async (t) => {
      const rows = await rowsUnder(file, heading)
      t.strictSame([...rows.keys()].sort(), await options())
      for (const [name, value] of Object.entries(defaults)) {
        const [told] = rows.get(name) ?? []
        if (told === undefined || name === 'docs') continue
        for (const one of written(value)) t.ok(told.includes(one), `${name}: ${one} in ${told}`)
      }
    },
  )
}

// Whatever each of them takes for a secret.
const EC_KEY = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  .publicKey.export({ format: 'der', type: 'spki' })
  .toString('base64')
const url = 'https://example.com/webhooks'
const OPTIONS: Record<string, object> = {
  azureEventGrid: { audience: 'a', directory: '00000000-0000-0000-0000-000000000000' },
  googlePubsub: { serviceAccount: 'a@b', audience: 'a' },
  microsoftGraph: { clientState: 'a' },
  plaid: { clientId: 'a', secret: 'a' },
  postmark: { secret: 'a:b' },
  telegram: { secretToken: 'a' },
  adyen: { hmacKey: 'ab' },
  awsSns: { topicArn: 'arn:aws:sns:eu-central-1:123456789012:orders' },
  discord: { publicKey: '0'.repeat(64) },
  gitlab: { signingToken: 'whsec_YQ==' },
  hubspot: { secret: 'a', url },
  mailgun: { signingKey: 'a' },
  meta: { secret: 'a', verifyToken: 'b' },
  paypal: { webhookId: 'a' },
  sendgrid: { publicKey: EC_KEY },
  square: { signatureKey: 'a', url },
  twilio: { authToken: 'a', url },
}

t.test(
  'docs/providers.md tells of every provider what the code does, and of no other',
  async (t) => {
    const verified = await rowsUnder('docs/providers.md', 'What is verified')
    const events = await rowsUnder('docs/providers.md', 'What becomes')
    const { basicAuth: _basic, hmac: _hmac, sharedSecret: _shared, ...named } = providers
    const names = Object.keys(named).sort()
    t.strictSame([...verified.keys()].sort(), names)
    t.strictSame([...events.keys()].sort(), names)
    for (const [name, make] of Object.entries(named) as [string, (options: object) => Provider][]) {
      const options = OPTIONS[name] ?? { secret: 'whsec_YQ==' }
      const { scheme, redelivers = true } = make(options)
      const [where = '', , , , window = ''] = verified.get(name) ?? []
      for (const option of Object.keys(options))
        t.ok(where.includes(`\`${option}\``), `${name}: ${option}`)
      const told = parseDuration(window.split(';')[0])
      t.equal(told, scheme.toleranceMs, `${name}: ${window}`)
      t.equal(events.get(name)?.[3], redelivers ? 'yes' : 'no', name)
    }
  },
)

t.test('docs/webhooks.md tells of every outcome what is answered', async (t) => {
  const rows = await rowsUnder('docs/webhooks.md', 'What a provider hears')
  const outcomes = unique(
    (await read('src/webhooks/answer.ts')).matchAll(/^ {2}(\w+): \{ status/gm),
  )
  t.strictSame([...rows.keys()].sort(), outcomes)
  const text = await read('src/webhooks/answer.ts')
  for (const [outcome, cells] of rows) {
    const status = new RegExp(`^ {2}${outcome}: \\{ status: (\\d+)`, 'm').exec(text)?.[1]
    t.ok(cells.at(-1)?.startsWith(String(status)), `${outcome}: ${status}`)
  }
})

t.test('the statements of the documents are understood by PostgreSQL', async (t) => {
  const { prisma } = await pgliteDatabase(t)
  const text = (await read('docs/operations.md')) + (await read('docs/flows.md'))
  const blocks = text.matchAll(/```sql\n([^`]+)```/g)
  const statements = [...blocks].flatMap(([, sql = '']) => sql.split(';').map((one) => one.trim()))
  t.ok(statements.length > 4)
  for (const sql of statements) {
    if (sql !== '') await t.resolves(prisma.$executeRawUnsafe(sql), sql.split('\n')[0] as string)
  }
})

const WITH_SNIPPETS = [
  'README.md',
  'docs/authorization.md',
  'docs/errors.md',
  'docs/exactly-once.md',
  'docs/flows.md',
  'docs/locks.md',
  'docs/operations.md',
  'docs/reservations.md',
  'docs/testing.md',
  'docs/webhooks.md',
]

// What the snippets take for granted: things of an application. What it must declare for itself is in the
// README's own snippets, and nowhere else.
const AROUND = `
  import type { FastifyInstance, FastifyRequest } from 'fastify'
  import type { WebhookEvent, WebhookHandler, WebhookOptions } from 'fastify-idempotency'
  import type { PrismaClient } from './generated/prisma/client.js'
  declare global {
    const app: FastifyInstance
    const prisma: PrismaClient
    const tenant: (request: FastifyRequest) => string
    const event: WebhookEvent
    const handler: WebhookHandler
    const provider: WebhookOptions['provider']
    const url: string
    const headers: Record<string, string>
    const body: Buffer
    const next: string, current: string
    const data: object
    interface Order { amount: number; currency: string }
    const order: Order
    const psp: { charge: (payment: unknown, options: { idempotencyKey: string }) => Promise<object> }
    const secretsOf: (tenantId: string) => Promise<string[]>
    const authenticate: (token: string | undefined) => Promise<FastifyRequest['user']>
    class AppModule {}
    const mailer: { send: (booking: unknown, options: { key: string }) => Promise<object> }
    const stripeClient: { events: { list: () => AsyncIterable<object> } }
  }`

// As strict as a generated client about what matters here: its models, and that data are an object.
const CLIENT = `
  type Call<Args> = (args: Args) => Promise<any>
  interface Model {
    create: Call<{ data: object }>
    createMany: Call<{ data: object }>
    createManyAndReturn: Call<{ data: object }>
    findUnique: Call<{ where: object }>
    findFirst: Call<object>
    findMany: Call<object>
    update: Call<{ where: object; data: object }>
    updateMany: Call<{ where: object; data: object }>
    deleteMany: Call<{ where: object }>
    count: (args?: object) => Promise<number>
  }
  export declare class PrismaClient {
    constructor(options: object)
    idempotencyRecord: Model
    account: Model; booking: Model; invoice: Model; mail: Model; order: Model; payment: Model
    report: Model; subscription: Model; ticket: Model
    $queryRawUnsafe<T>(query: string, ...values: unknown[]): Promise<T>
    $disconnect(): Promise<void>
    $transaction<T>(
      fn: (tx: Omit<PrismaClient, '$transaction' | '$disconnect'>) => Promise<T>,
      options?: object,
    ): Promise<T>
  }`

t.test('the snippets of the documents compile in a strict application', async (t) => {
  const files: NonNullable<Parameters<typeof t.testdir>[0]> = {
    'around.ts': AROUND,
    generated: { prisma: { 'client.ts': CLIENT } },
    'tsconfig.json': JSON.stringify({
      compilerOptions: {
        ...{ strict: true, exactOptionalPropertyTypes: true, skipLibCheck: true, noEmit: true },
        ...{
          module: 'nodenext',
          target: 'es2022',
          lib: ['es2023', 'es2024.string'],
          types: ['node'],
        },
        paths: {
          'fastify-idempotency': [`${root}src/index.ts`],
          'fastify-idempotency/webhooks': [`${root}src/webhooks/index.ts`],
          'fastify-idempotency/bullmq': [`${root}src/dispatch/bullmq.ts`],
        },
      },
      include: ['*.ts'],
    }),
    'package.json': '{ "type": "module" }',
  }
  for (const file of WITH_SNIPPETS) {
    const blocks = [...(await read(file)).matchAll(/```ts\n(.*?)```/gs)]
    t.not(blocks.length, 0)
    for (const [n, [, code = '']] of blocks.entries()) {
      files[`${file.replace(/\W/g, '-')}-${n + 1}.ts`] = `${code}\nexport {}\n`
    }
  }
  const tsc = `${root}node_modules/typescript/bin/tsc`
  const { stdout } = await promisify(execFile)(process.execPath, [tsc, '-p', t.testdir(files)], {
    cwd: root,
  }).catch((error: { stdout: string }) => error)
  t.equal(stdout, '')
})
