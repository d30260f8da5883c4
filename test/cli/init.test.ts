import { chmod, readdir, readFile, stat, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { type Test, test } from 'tap'
import { init } from '../../src/cli/init.js'
import { runCommand } from './run-command.js'

const schema = 'datasource db {\n  provider = "postgresql"\n}\n\nmodel User {\n  id Int @id\n}\n'

type Files = Parameters<Test['testdir']>[0] & {}

/** Every file below a folder, by its path, as bytes in latin1. */
async function contents(folder: string): Promise<Record<string, string>> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  const paths = entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
  const texts = await Promise.all(paths.map((path) => readFile(path, 'latin1')))
  return Object.fromEntries(
    paths.map((path, index) => [path.slice(folder.length + 1), texts[index] ?? '']),
  )
}

/** With its paragraphs in one line each, however they are broken. */
function unbroken<Told extends { stdout: string; stderr: string }>(told: Told): Told {
  const join = (text: string) => text.replace(/(?<=\S)\n(?=\S)/g, ' ')
  return { ...told, stdout: join(told.stdout), stderr: join(told.stderr) }
}

/** In this process, which is quick: everything but the reading of arguments and the printing. */
async function initIn(cwd: string, path?: string) {
  return unbroken(await init({ cwd, path, mode: 'write' }))
}

async function refuses(t: Test, files: Files, message: RegExp, path?: string): Promise<void> {
  const folder = t.testdir({ app: files })
  const before = await contents(folder)
  const report = await initIn(join(folder, 'app'), path)
  t.match(report, { stdout: '', stderr: message, exitCode: 1 })
  t.match(report.stderr, /Nothing was changed/)
  t.same(await contents(folder), before)
}

test('as a process', async (t) => {
  t.test('adds to one file, says what is next, and adds nothing when run again', async (t) => {
    const folder = t.testdir({ prisma: { 'schema.prisma': schema } })
    const first = unbroken(await runCommand(folder, 'init'))
    t.match(first, { stderr: '', exitCode: 0 })
    t.match(
      first.stdout,
      'Added models IdempotencyRecord, WebhookEvent, NamedLock, SlotReservation, StatusChange at the end of prisma/schema.prisma.',
    )
    t.match(first.stdout, '  npx prisma migrate dev --name idempotency\n  npx prisma generate\n')
    t.match(first.stdout, '  await app.register(idempotency, {\n    prisma,\n    tenant:')

    const written = await contents(folder)
    t.same(Object.keys(written), ['prisma/schema.prisma'])
    t.ok(written['prisma/schema.prisma']?.startsWith(schema))
    t.same(unbroken(await runCommand(folder, 'init')), {
      stdout:
        'prisma/schema.prisma has models IdempotencyRecord, WebhookEvent, NamedLock, SlotReservation, StatusChange; nothing to add.\n',
      stderr: '',
      exitCode: 0,
    })
    t.same(await contents(folder), written)
  })

  t.test('checks and shows without writing', async (t) => {
    const folder = t.testdir({ prisma: { 'schema.prisma': schema } })
    const before = await contents(folder)
    const check = unbroken(await runCommand(folder, 'init', '--check'))
    t.match(check, {
      stdout:
        /lacks models IdempotencyRecord, WebhookEvent, NamedLock, SlotReservation, StatusChange/,
      stderr: '',
      exitCode: 1,
    })
    const dryRun = await runCommand(folder, 'init', '--dry-run')
    t.match(dryRun, { stdout: /Would add to the end of/, stderr: '', exitCode: 0 })
    t.match(dryRun.stdout, '\nmodel IdempotencyRecord {\n')
    t.same(await contents(folder), before)

    await initIn(folder)
    t.match(await runCommand(folder, 'init', '--check'), { stdout: /nothing to add/, exitCode: 0 })
  })

  t.test('sends what is wrong to stderr, with 2 for misuse and 1 for the rest', async (t) => {
    const folder = t.testdir({})
    t.match(await runCommand(folder, 'init', '--chek'), {
      stdout: '',
      stderr: /--chek/,
      exitCode: 2,
    })
    t.match(await runCommand(folder, 'init'), {
      stdout: '',
      stderr: /no Prisma schema/,
      exitCode: 1,
    })
  })

  t.test('prints its help and its version', async (t) => {
    const description = await readFile(new URL('../../package.json', import.meta.url), 'utf8')
    const { version } = JSON.parse(description)
    const folder = t.testdir({})
    const help = { stdout: /^fastify-idempotency init \[path\]/, stderr: '', exitCode: 0 }
    t.match(await runCommand(folder, '--help'), help)
    t.same(await runCommand(folder, '--version'), {
      stdout: `${version}\n`,
      stderr: '',
      exitCode: 0,
    })
  })
})

test('finds the schema where Prisma would', async (t) => {
  const at = (path: string) => `at the end of ${path}.`
  const config = "export default defineConfig({ schema: 'db/app.prisma' })"
  const db = { 'app.prisma': schema }
  const prisma = { 'schema.prisma': schema }
  const cases: [title: string, files: Files, where: string, path?: string][] = [
    ['prisma/schema.prisma', { prisma }, at('prisma/schema.prisma')],
    ['schema.prisma first', { prisma, 'schema.prisma': schema }, at('schema.prisma')],
    [
      'package.json',
      { prisma, db, 'package.json': '{"prisma":{"schema":"db/app.prisma"}}' },
      at('db/app.prisma'),
    ],
    [
      'prisma.config.ts',
      { prisma, db, 'package.json': '{"prisma":{"schema":"x"}}', 'prisma.config.ts': config },
      at('db/app.prisma'),
    ],
    ['prisma.config.js', { prisma, db, 'prisma.config.js': config }, at('db/app.prisma')],
    [
      'relative to the configuration',
      { prisma, '.config': { db, 'prisma.ts': config } },
      at('.config/db/app.prisma'),
    ],
    [
      'a configuration that does not say',
      { prisma, 'prisma.config.ts': 'export default {}' },
      at('prisma/schema.prisma'),
    ],
    [
      'a folder of a configuration',
      { db, 'prisma.config.ts': 'export default { schema: "./db" }' },
      'in the new file db/idempotency.prisma.',
    ],
    ['a folder by default', { prisma: db }, 'in the new file prisma/idempotency.prisma.'],
    ['a file that is named', { prisma, db }, at('db/app.prisma'), 'db/app.prisma'],
    ['a folder that is named', { prisma, db }, 'in the new file db/idempotency.prisma.', 'db'],
  ]
  for (const [title, files, where, path] of cases) {
    t.test(title, async (t) => {
      const report = await initIn(t.testdir(files), path)
      t.match(report, { stderr: '', exitCode: 0 })
      t.ok(
        report.stdout.startsWith(
          `Added models IdempotencyRecord, WebhookEvent, NamedLock, SlotReservation, StatusChange ${where}`,
        ),
        report.stdout,
      )
    })
  }
})

test('tells Prisma which schema was named', async (t) => {
  const { stdout } = await initIn(t.testdir({ 'my db': { 'app.prisma': schema } }), 'my db')
  t.match(stdout, 'npx prisma generate --schema "my db"\n')
})

test('adds one file to a folder, once, and leaves the others alone', async (t) => {
  const models = { 'user.prisma': 'model User {\n  id Int @id\n}\n' }
  const folder = t.testdir({
    prisma: { 'main.prisma': schema.replace(/model[\s\S]*/, ''), models },
  })
  const before = await contents(folder)
  await initIn(folder)
  const { 'prisma/idempotency.prisma': added, ...others } = await contents(folder)
  t.match(added, /^\/\/ The models of fastify-idempotency[\s\S]*model IdempotencyRecord \{/)
  t.same(others, before)

  const written = await contents(folder)
  t.match(await initIn(folder), { stdout: /nothing to add/, exitCode: 0 })
  t.same(await contents(folder), written)
})

test('keeps CRLF, a missing last newline, and bytes that are no UTF-8', async (t) => {
  const existing = Buffer.concat([
    Buffer.from(schema.trimEnd().replaceAll('\n', '\r\n')),
    Buffer.from([0x20, 0x2f, 0x2f, 0xe9, 0xff]),
  ])
  const folder = t.testdir({ 'schema.prisma': existing })
  await initIn(folder)
  const written = await readFile(join(folder, 'schema.prisma'))
  t.ok(written.subarray(0, existing.length).equals(existing))
  const added = written.subarray(existing.length).toString()
  t.ok(added.startsWith('\r\n\r\n// The models'))
  t.notMatch(added, /[^\r]\n/)
  t.match(await initIn(folder), { stdout: /nothing to add/ })
  t.ok((await readFile(join(folder, 'schema.prisma'))).equals(written))
})

test("keeps the file's mode, a symbolic link to it, and leaves nothing beside it", async (t) => {
  const folder = t.testdir({ real: { 'schema.prisma': schema } })
  await chmod(join(folder, 'real/schema.prisma'), 0o640)
  await symlink('real/schema.prisma', join(folder, 'schema.prisma'))
  await initIn(folder)
  t.equal((await stat(join(folder, 'real/schema.prisma'))).mode & 0o777, 0o640)
  t.match(await readFile(join(folder, 'real/schema.prisma'), 'utf8'), 'model IdempotencyRecord {')
  t.same((await readdir(folder)).sort(), ['real', 'schema.prisma'])
  t.same(await readdir(join(folder, 'real')), ['schema.prisma'])
})

test('is not misled by comments and strings', async (t) => {
  const misleading = `${schema}
// model IdempotencyRecord {
/* model IdempotencyRecord {
} */
model Note {
  id   Int    @id
  text String @default("model IdempotencyRecord {")
}
`
  const folder = t.testdir({ 'schema.prisma': misleading })
  t.match(await initIn(folder), {
    stdout:
      /^Added models IdempotencyRecord, WebhookEvent, NamedLock, SlotReservation, StatusChange /,
  })
  t.match(await initIn(folder), { stdout: /nothing to add/ })
})

test('leaves a name to the model of the application that has it, and calls that a choice', async (t) => {
  const own = `${schema}\nmodel WebhookEvent {\n  id String @id\n  body Json\n}\n`
  const folder = t.testdir({ 'schema.prisma': own })
  const choice = `
schema.prisma has a model WebhookEvent that is the application's own.
fastify-idempotency needs its own model WebhookEvent for webhooks (app.webhook,
recordEvent, ingest, replay). An application that goes without these has nothing
to do. To use them, give yours another name (\`@@map("WebhookEvent")\` keeps its
name in the database), and run \`npx fastify-idempotency init\` again.
`
  const report = (mode: 'write' | 'check') => init({ cwd: folder, path: undefined, mode })
  const lacks = 'schema.prisma lacks models IdempotencyRecord, NamedLock'
  t.match(await report('check'), { stdout: lacks, stderr: choice, exitCode: 1 })
  const added = 'Added models IdempotencyRecord, NamedLock'
  t.match(await report('write'), { stdout: added, stderr: choice, exitCode: 0 })
  t.ok((await readFile(join(folder, 'schema.prisma'), 'utf8')).startsWith(own))
  const has = 'schema.prisma has models IdempotencyRecord, NamedLock'
  t.match(await report('check'), { stdout: has, stderr: choice, exitCode: 0 })
})

test('prints lines of at most 80 columns, and breaks neither words nor code', async (t) => {
  const models = await readFile(new URL('../../prisma/idempotency.prisma', import.meta.url), 'utf8')
  const mysql = schema.replace('postgresql', 'mysql')
  const own = `${schema}model StatusChange {\n  id Int @id\n}\n`
  const configuration = 'export default { schema: pick() }'
  const lacking = models.replace(/^ {2}(body|fence|lane|slot) .*\n/gm, '')
  const applications: Record<string, Record<string, string>> = {
    plain: { 'schema.prisma': schema },
    mysql: { 'schema.prisma': mysql },
    own: { 'schema.prisma': own },
    lacking: { 'schema.prisma': schema + lacking },
    other: { 'schema.prisma': schema.replace('postgresql', 'cockroachdb') },
    computed: { 'prisma7.config.ts': configuration },
    empty: {},
  }
  const folder = t.testdir(applications)
  for (const name of Object.keys(applications)) {
    const cwd = join(folder, name)
    const { stdout, stderr } = await init({ cwd, path: undefined, mode: 'write' })
    for (const line of `${stdout}${stderr}`.split('\n')) {
      if (!line.startsWith('  ')) t.ok(line.length <= 80, line)
      t.equal((line.match(/`/g)?.length ?? 0) % 2, 0, line)
    }
  }
})

test('prints the models that it would add in at most 80 columns', async (t) => {
  for (const provider of ['postgresql', 'mysql', 'sqlite']) {
    const cwd = t.testdir({ 'schema.prisma': schema.replace('postgresql', provider) })
    const { stdout } = await init({ cwd, path: undefined, mode: 'dry-run' })
    t.match(stdout, 'model IdempotencyRecord {')
    t.strictSame(
      stdout.split('\n').filter((line) => line.length > 80),
      [],
      provider,
    )
  }
})

test("names what a team's model lacks, and changes nothing", async (t) => {
  const models = await readFile(new URL('../../prisma/idempotency.prisma', import.meta.url), 'utf8')
  const own = models.replace(/^ {2}(attempt|headers) .*\n/gm, '')
  const message =
    /Missing: field IdempotencyRecord\.attempt, field IdempotencyRecord\.headers\. Add to the model:\n\n {2}attempt {5}Int {7}@default\(1\)\n {2}headers {5}Json\?\n/
  await refuses(t, { 'schema.prisma': schema + own }, message)
})

test('tells users of MySQL how keys that differ in case stay two keys', async (t) => {
  const folder = t.testdir({ 'schema.prisma': schema.replace('postgresql', 'mysql') })
  const { stdout } = await initIn(folder)
  t.match(stdout, 'npx prisma migrate dev --name idempotency --create-only\n')
  t.match(stdout, 'MODIFY `key` VARCHAR(255) COLLATE utf8mb4_0900_bin NOT NULL')
  // A nullable column stays one: events without a name are never merged.
  t.match(stdout, 'MODIFY `event_id` VARCHAR(255) COLLATE utf8mb4_0900_bin NULL')
  t.match(stdout, 'MODIFY `running_lane` VARCHAR(255) COLLATE utf8mb4_0900_bin NULL')
})

test('refuses what it cannot do, and changes nothing', async (t) => {
  const cases: [title: string, files: Files, message: RegExp, path?: string][] = [
    ['no schema', { 'package.json': '{}', prisma: {} }, /There is no Prisma schema here/],
    ['a package.json that is no JSON', { 'package.json': '{' }, /There is no Prisma schema here/],
    [
      'a named file that is not there',
      { 'schema.prisma': schema },
      /There is no file or folder db\/x\.prisma/,
      'db/x.prisma',
    ],
    [
      'a folder without a schema',
      { 'schema.prisma': schema, db: {} },
      /no `datasource` block in the folder/,
      'db',
    ],
    [
      'a configured file that is not there',
      { 'schema.prisma': schema, 'prisma.config.ts': 'export default { schema: "x" }' },
      /prisma\.config\.ts says that the schema is x/,
    ],
    [
      'a configuration that computes',
      { 'schema.prisma': schema, 'prisma.config.ts': 'export default { schema: pick() }' },
      /Name the file or folder/,
    ],
    [
      'another provider',
      { 'schema.prisma': schema.replace('postgresql', 'cockroachdb') },
      /the provider "cockroachdb"/,
    ],
    [
      'a schema that is cut off',
      { 'schema.prisma': schema.trimEnd().slice(0, -1) },
      /starts in line 5 and never ends/,
    ],
  ]
  for (const [title, files, message, path] of cases) {
    t.test(title, (t) => refuses(t, files, message, path))
  }
})

test('leaves the schema whole, and nothing beside it, when it cannot be replaced', async (t) => {
  const folder = t.testdir({ 'schema.prisma': schema })
  const { appendAtomically } = await t.mockImport<
    typeof import('../../src/cli/append-atomically.js')
  >('../../src/cli/append-atomically.js', {
    'node:fs/promises': t.createMock(await import('node:fs/promises'), {
      rename: () => Promise.reject(new Error('no space left')),
    }),
  })
  await t.rejects(
    appendAtomically(join(folder, 'schema.prisma'), 'model A {\n}\n'),
    /no space left/,
  )
  t.same(await contents(folder), { 'schema.prisma': schema })
})
