import { readdir, readFile } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const src = fileURLToPath(new URL('../src', import.meta.url))

// What each part may import besides itself. Read from the left: nothing imports what stands on it.
const MAY_IMPORT: Record<string, readonly string[]> = {
  core: [],
  store: ['core', 'within'],
  errors: [],
  register: [],
  within: [],
  drain: [],
  'crash-points': [],
  holder: [],
  checks: ['core', 'errors'],
  events: ['core', 'store'],
  sealed: ['core', 'errors', 'events', 'store'],
  dispatch: ['core', 'errors', 'events', 'checks', 'within'],
  lease: ['core', 'events', 'store', 'within'],
  locks: [
    'sealed',
    'holder',
    'crash-points',
    'core',
    'store',
    'errors',
    'events',
    'checks',
    'within',
    'lease',
  ],
  reservations: ['core', 'store', 'errors', 'events', 'checks'],
  once: ['store', 'errors'],
  status: ['sealed', 'core', 'store', 'errors', 'events', 'checks', 'register'],
  models: ['errors', 'store'],
  guards: ['sealed', 'events', 'locks', 'models', 'once', 'reservations', 'status', 'store'],
  options: ['core', 'store', 'dispatch'],
  'check-options': ['holder', 'core', 'errors', 'options', 'checks'],
  claims: [
    'drain',
    'sealed',
    'holder',
    'core',
    'store',
    'events',
    'errors',
    'register',
    'within',
    'lease',
    'crash-points',
  ],
  atomic: ['crash-points', 'within', 'core', 'store', 'claims', 'errors', 'events', 'options'],
  http: [
    'sealed',
    'register',
    'within',
    'core',
    'store',
    'claims',
    'atomic',
    'operations',
    'errors',
    'events',
    'options',
    'check-options',
  ],
  webhooks: [
    'sealed',
    'crash-points',
    'drain',
    'within',
    'core',
    'store',
    'claims',
    'lease',
    'guards',
    'dispatch',
    'http',
    'errors',
    'events',
    'options',
    'checks',
    'register',
  ],
  regularly: ['within'],
  retention: ['events', 'within'],
  operations: [
    'sealed',
    'drain',
    'core',
    'store',
    'claims',
    'errors',
    'events',
    'checks',
    'options',
    'check-options',
    'within',
  ],
  fastify: ['guards', 'http', 'operations', 'options', 'webhooks'],
  plugin: [
    'sealed',
    'atomic',
    'guards',
    'models',
    'core',
    'store',
    'claims',
    'dispatch',
    'http',
    'webhooks',
    'errors',
    'events',
    'options',
    'check-options',
    'operations',
    'regularly',
    'retention',
    'fastify',
    'within',
  ],
  index: [
    'sealed',
    'guards',
    'locks',
    'once',
    'reservations',
    'status',
    'core',
    'store',
    'claims',
    'dispatch',
    'http',
    'webhooks',
    'errors',
    'events',
    'operations',
    'options',
    'plugin',
    'fastify',
    'register',
  ],
  cli: ['store'],
}

interface Import {
  file: string
  from: string
  part: string
}

async function imports(): Promise<Import[]> {
  const files = (await readdir(src, { recursive: true })).filter((file) => file.endsWith('.ts'))
  const found: Import[] = []
  for (const file of files) {
    const text = await readFile(join(src, file), 'utf8')
    for (const [, from] of text.matchAll(/(?:from|import) '([^']+)'/g)) {
      if (from !== undefined) found.push({ file, from, part: partOf(file) })
    }
  }
  return found
}

const partOf = (file: string) => (file.split('/')[0] as string).replace(/\.[jt]s$/, '')

t.test('imports go one way', async (t) => {
  const all = await imports()
  t.ok(all.length > 50)
  for (const { file, from, part } of all) {
    if (!from.startsWith('.')) continue
    const target = partOf(relative(src, join(src, dirname(file), from)))
    if (target === part) continue
    t.ok(MAY_IMPORT[part]?.includes(target), `${file} imports ${from}`)
  }
})

t.test('the core is pure: no framework, no database, no clock, no chance', async (t) => {
  for (const { file, from, part } of await imports()) {
    if (part !== 'core' || from.startsWith('.')) continue
    t.ok(['node:crypto', 'node:util'].includes(from), `${file} imports ${from}`)
  }
  for (const file of await readdir(join(src, 'core'))) {
    const text = await readFile(join(src, 'core', file), 'utf8')
    t.notMatch(text, /Date\.now|new Date|performance|Math\.random|setTimeout|process\./, file)
  }
})

t.test('nothing of Prisma is imported: the client comes from the application', async (t) => {
  for (const { file, from } of await imports()) {
    if (!from.startsWith('.')) t.notMatch(from, /prisma/, file)
  }
})

t.test(
  'who does not use BullMQ does not need it: one file imports it, and nothing that file',
  async (t) => {
    for (const { file, from } of await imports()) {
      t.notMatch(from, /\/bullmq\.js$/, `${file} imports ${from}`)
      if (from === 'bullmq') t.equal(file, 'dispatch/bullmq.ts')
    }
  },
)
