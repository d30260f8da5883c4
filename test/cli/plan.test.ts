import { readFile } from 'node:fs/promises'
import fc from 'fast-check'
import { test } from 'tap'
import { applyChange, type Plan, plan, type Schema } from '../../src/cli/plan.js'
import { readBlocks } from '../../src/cli/schema-text.js'

const models = await readFile(new URL('../../prisma/idempotency.prisma', import.meta.url), 'utf8')
const datasource = 'datasource db {\n  provider = "postgresql"\n}\n'

function oneFile(text: string): Schema {
  return { files: [{ path: 'schema.prisma', text }], target: 'schema.prisma' }
}

function folder(files: Record<string, string>): Schema {
  return {
    files: Object.entries(files).map(([path, text]) => ({ path, text })),
    target: 'idempotency.prisma',
  }
}

function changeOf(planned: Plan) {
  if (planned.kind !== 'add') throw new Error(`nothing to add: ${JSON.stringify(planned)}`)
  return planned.change
}

test('appends the models under a comment, after one blank line', async (t) => {
  for (const [text, gap] of [
    [datasource, '\n'],
    [datasource.trimEnd(), '\n\n'],
    [`${datasource}\n`, ''],
  ] as const) {
    const { added, isNewFile } = changeOf(plan(oneFile(text), models))
    t.equal(added.slice(0, added.indexOf('//')), gap)
    t.match(added, /^\s*\/\/ The models of fastify-idempotency/)
    t.ok(added.endsWith(models.slice(models.indexOf('model IdempotencyRecord'))))
    t.equal(isNewFile, false)
  }
})

test('writes a file of its own into a folder', async (t) => {
  const schema = folder({
    'schema.prisma': datasource,
    'user.prisma': 'model User {\n id Int @id\n}',
  })
  const change = changeOf(plan(schema, models))
  t.match(change, { path: 'idempotency.prisma', isNewFile: true, added: /^\/\/ The models/ })
  t.match(plan(applyChange(schema, change), models), { kind: 'complete' })
})

test('finds the models in whichever file of a folder has them', async (t) => {
  const schema = folder({ 'a/schema.prisma': datasource, 'b/ours.prisma': models })
  t.match(plan(schema, models), { kind: 'complete', models: ['IdempotencyRecord', 'WebhookEvent'] })
})

test('adds only the models that are missing, to a file that is there already', async (t) => {
  const later = `${models}\n/// Who holds what.\nmodel Hold {\n  name String @id\n}\n`
  const schema = folder({ 'schema.prisma': datasource, 'idempotency.prisma': models })
  const planned = plan(schema, later)
  t.match(planned, { kind: 'add', models: ['Hold'], change: { isNewFile: false } })
  t.match(changeOf(planned).added, '/// Who holds what.\nmodel Hold {')
  t.notMatch(changeOf(planned).added, 'IdempotencyRecord')
})

test('follows the newlines of the file, or of the datasource for a new file', async (t) => {
  const windows = datasource.replaceAll('\n', '\r\n')
  for (const schema of [oneFile(windows), folder({ 'schema.prisma': windows })]) {
    t.notMatch(changeOf(plan(schema, models)).added, /[^\r]\n/)
  }
  t.notMatch(changeOf(plan(oneFile(datasource), models.replaceAll('\n', '\r\n'))).added, /\r/)
})

test('adapts the models to the provider', async (t) => {
  for (const [provider, key] of [
    ['postgresql', /key {9}String\n/],
    ['postgres', /key {9}String\n/],
    ['mysql', /key {9}String {4}@db.VarChar\(255\)\n/],
    ['sqlite', /key {9}String\n/],
  ] as const) {
    const schema = oneFile(datasource.replace('postgresql', provider))
    t.match(changeOf(plan(schema, models)).added, key, provider)
  }
})

test('refuses a provider it has no models for', async (t) => {
  for (const provider of ['cockroachdb', 'sqlserver', 'mongodb', 'oracle']) {
    const planned = plan(oneFile(datasource.replace('postgresql', provider)), models)
    t.match(planned, { kind: 'refused', reason: `the provider "${provider}"` })
  }
  const without = plan(oneFile('datasource db {\n  url = "postgresql"\n}'), models)
  t.match(without, { kind: 'refused', reason: 'no provider' })
})

test('reads the provider of the datasource, not of a generator or a comment', async (t) => {
  const text = `generator client {
  provider = "mongodb"
}
// datasource db { provider = "mongodb" }
datasource db {
  // provider = "mongodb"
  provider = "sqlite" // not "mongodb"
}
`
  t.match(plan(oneFile(text), models), { kind: 'add', provider: 'sqlite' })
})

test('refuses a schema without a datasource, and one that never ends', async (t) => {
  t.match(plan(oneFile('model A {\n}\n'), models), { kind: 'refused', reason: /no `datasource`/ })
  for (const end of ['/* model A {\n}', 'model A {\n  id Int @id']) {
    t.match(plan(oneFile(datasource + end), models), { kind: 'refused', reason: /line 4/ })
  }
})

test('refuses a name that something else has', async (t) => {
  const planned = plan(oneFile(`${datasource}enum IdempotencyRecord {\n  A\n}\n`), models)
  t.match(planned, {
    kind: 'refused',
    reason:
      /has an enum IdempotencyRecord that is the application's own\. .* in every application: give yours another name/,
  })
  t.end()
})

/** A schema with models of an application: names, and tables where they have others. */
const withOwn = (...own: [name: string, table?: string, fields?: string][]) =>
  oneFile(
    datasource +
      own
        .map(([name, table, fields = 'body Json\n  status String']) => {
          const map = table === undefined ? '' : `\n  @@map("${table}")`
          return `model ${name} {\n  id String @id\n  ${fields}${map}\n}\n`
        })
        .join('\n'),
  )

test('leaves out what has the name or the table of something of the application, and adds the others', async (t) => {
  const by = (name: string, table: string, what = 'a model') => ({ what, name, table })
  for (const [schema, taken, name] of [
    [withOwn(['WebhookEvent']), by('WebhookEvent', 'WebhookEvent'), 'WebhookEvent'],
    [withOwn(['NamedLock', 'named_lock']), by('NamedLock', 'named_lock'), 'NamedLock'],
    [withOwn(['Audit', 'status_change']), by('Audit', 'status_change'), 'StatusChange'],
    [
      oneFile(`${datasource}enum StatusChange {\n  A\n}\n`),
      by('StatusChange', 'StatusChange', 'an enum'),
      'StatusChange',
    ],
  ] as const) {
    const planned = plan(schema, models)
    t.match(planned, { kind: 'add', taken: [{ name, by: taken, path: 'schema.prisma' }] })
    t.notMatch(changeOf(planned).added, `model ${name} {`)
    t.equal(changeOf(planned).added.match(/^model /gm)?.length, 4)
    const again = plan(applyChange(schema, changeOf(planned)), models)
    t.match(again, { kind: 'complete', models: { length: 4 }, taken: [{ name, by: taken }] })
  }
  for (const own of ['IdempotencyRecord', 'Keys'] as const) {
    const planned = plan(withOwn([own, 'idempotency_record']), models)
    t.match(planned, { kind: 'refused', reason: /needs its own model IdempotencyRecord in every/ })
  }
})

test('lets a model of another database schema have a table of the same name', async (t) => {
  const text = datasource.replace('\n}', '\n  schemas = ["base", "public"]\n}')
  const own = 'model Hook {\n  id Int @id\n\n  @@map("webhook_event")\n  @@schema("base")\n}\n'
  t.match(plan(oneFile(text + own), models), { kind: 'add', models: { length: 5 }, taken: [] })
})

test('gives the models a database schema where the datasource lists several', async (t) => {
  for (const [schemas, chosen] of [
    ['["base", "public"]', 'public'],
    ['["base", "other"]', 'base'],
  ]) {
    const text = datasource.replace('\n}', `\n  schemas = ${schemas}\n}`)
    t.match(changeOf(plan(oneFile(text), models)).added, `\n  @@schema("${chosen}")\n}\n`)
  }
})

test('keeps a model of the team that has what is needed', async (t) => {
  const own = models
    .replace('DateTime @map("lease_until")', 'DateTime @map("lease_until") @db.Timestamptz(3)')
    .replace(
      '@@id([tenantId, key])',
      'rowId Int @id\n  note String?\n  @@unique(fields: [tenantId,key])',
    )
    .replace('@@index([expiresAt])', '')
  t.match(plan(oneFile(datasource + own), models), { kind: 'complete' })
})

test('names the fields that a model of the team lacks, and the lines to add', async (t) => {
  // Of the first model alone.
  const own = models
    .replace(/^ {2}attempt .*\n/m, '// attempt Int\n')
    .replace(/^ {2}body .*\n/m, '// body Int\n')
  t.same(plan(oneFile(datasource + own), models), {
    kind: 'incomplete',
    models: [
      {
        name: 'IdempotencyRecord',
        path: 'schema.prisma',
        shortcomings: [
          { what: 'field IdempotencyRecord.attempt', needs: 'attempt     Int       @default(1)' },
          { what: 'field IdempotencyRecord.body', needs: 'body        Bytes?' },
        ],
      },
    ],
  })
})

test('tells a model without the unique constraint, which everything rests on', async (t) => {
  const own = models.replace('@@id([tenantId, key])', 'id Int @id')
  const needs = '@@id([tenantId, key])'
  t.match(plan(oneFile(datasource + own), models), { models: [{ shortcomings: [{ needs }] }] })
})

test('tells a field of another type everywhere, and other names in the database on PostgreSQL', async (t) => {
  const other = models.replace('Int?   ', 'String?')
  const renamed = models
    .replace('"tenant_id"', '"tenant"')
    .replace('"idempotency_record"', '"record"')
  const mysql = datasource.replace('postgresql', 'mysql')
  const has = 'statusCode  String?   @map("status_code")'
  t.match(plan(oneFile(datasource + other), models), { models: [{ shortcomings: [{ has }] }] })
  t.match(plan(oneFile(mysql + other), models), { models: [{ shortcomings: [{ has }] }] })
  t.match(plan(oneFile(datasource + renamed), models), {
    models: [
      {
        shortcomings: [
          { what: /tenantId/ },
          { has: '@@map("record")', needs: '@@map("idempotency_record")' },
        ],
      },
    ],
  })
  t.match(plan(oneFile(mysql + renamed), models), { kind: 'complete' })
})

test('lets the application name the tables that only Prisma writes to', async (t) => {
  const renamed = models.replace('"named_lock"', '"locks"').replace('"held_until"', '"until"')
  t.match(plan(oneFile(datasource + renamed), models), { kind: 'complete' })
})

// Pieces that make and unmake blocks, comments and strings wherever they happen to meet.
const piece = fc.constantFrom(
  ...['model ', 'IdempotencyRecord', ' {', '}', '{', '"', '\\', '//', '/*', '*/', '///', "'", '/'],
  ...['\n', '\r\n', '\r', ' ', '@@id([tenantId, key])', 'key String', 'é', '\uFEFF', '@map("x")'],
  ...['\n// model IdempotencyRecord {\n', '\n/* model IdempotencyRecord {\n} */\n'],
  ...[
    '\nmodel A {\n  id Int @id\n}\n',
    '\nmodel B {\n  a String @default("}{")\n}\n',
    '\nenum E {\n  X\n}',
  ],
)
const anyText = fc.array(piece, { maxLength: 30 }).map((pieces) => pieces.join(''))

test('any text: what is added is found by the next run, and nothing that was there changes', async (t) => {
  let additions = 0
  const property = fc.property(anyText, anyText, fc.boolean(), (before, after, isFolder) => {
    const text = `${before}\n${datasource}${after}`
    const schema = isFolder ? folder({ 'schema.prisma': text }) : oneFile(text)
    const planned = plan(schema, models)
    if (planned.kind !== 'add') return
    additions++
    const next = applyChange(schema, planned.change)
    if (!next.files[0]?.text.startsWith(text)) throw new Error('existing text changed')
    const again = plan(next, models)
    if (again.kind !== 'complete') throw new Error(`the second run finds ${JSON.stringify(again)}`)
  })
  fc.assert(property, { numRuns: 2_000 })
  t.ok(additions > 200, 'and enough of the texts take an addition')
})

test('tells the line of a field that is there and not unique, once', async (t) => {
  const line = /^ {2}(runningLane .*)\n/m.exec(models)?.[1] as string
  const has = line.replace('@unique ', '')
  t.same(plan(oneFile(datasource + models.replace(line, has)), models), {
    kind: 'incomplete',
    models: [
      {
        name: 'WebhookEvent',
        path: 'schema.prisma',
        shortcomings: [
          { what: 'unique constraint of WebhookEvent on (runningLane)', has, needs: line },
        ],
      },
    ],
  })
  const without = models.replace(`  ${line}\n`, '')
  t.match(plan(oneFile(datasource + without), models), {
    models: [{ shortcomings: { length: 1, 0: { needs: line } } }],
  })
})

test('any subset of the lines of a model: the lines that are named make it complete', async (t) => {
  const shipped = readBlocks(models)
  if (shipped.kind !== 'read') throw new Error('prisma/idempotency.prisma is cut off')
  for (const { name, start, end } of shipped.blocks) {
    const others = models.slice(0, start) + models.slice(end)
    const lines = models
      .slice(start, end)
      .split('\n')
      .filter((line) => /^ {2}[^/]/.test(line))
    const property = fc.property(fc.shuffledSubarray(lines), (kept) => {
      const own = `${others}\nmodel ${name} {\n${kept.join('\n')}\n`
      const first = plan(oneFile(`${datasource}${own}}\n`), models)
      // With less than half of the fields, it is a model of the application's own.
      const isField = (line: string) => !line.startsWith('  @@')
      const isOwn = kept.filter(isField).length * 2 < lines.filter(isField).length
      const isLeft = first.kind === 'complete' ? first.taken.length > 0 : first.kind === 'refused'
      if (isLeft !== isOwn) throw new Error(JSON.stringify(first))
      if (isOwn || first.kind === 'complete') return
      if (first.kind !== 'incomplete') throw new Error(first.kind)
      const named = first.models[0]?.shortcomings.map(({ needs }) => needs) ?? []
      if (new Set(named).size < named.length) throw new Error('a line is named twice')
      const mended = plan(oneFile(`${datasource}${own}${named.join('\n')}\n}\n`), models)
      if (mended.kind !== 'complete') throw new Error(JSON.stringify(mended))
    })
    fc.assert(property, { numRuns: 300 })
  }
  t.pass()
})
