import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { test } from 'tap'
import { init } from '../../src/cli/init.js'
import { runPrisma, runSource } from './run-command.js'

const PROVIDERS = ['postgresql', 'mysql', 'sqlite'] as const

function schemaFor(provider: string, settings = ''): string {
  return `generator client {
  provider = "prisma-client"
  output   = "./client"
}

datasource db {
  provider = "${provider}"
${settings}}
`
}

/** Makes a client of each provider, without a database, and prints what each lacks. */
function whatClientsLack(folder: string): string {
  const library = new URL('../../src/store/client.ts', import.meta.url)
  const files = PROVIDERS.map((provider) => [
    // What driver adapters call it.
    provider === 'postgresql' ? 'postgres' : provider,
    pathToFileURL(join(folder, provider, 'client/client.ts')),
  ])
  return `
    const { missingFromClient } = await import('${library}')
    for (const [provider, file] of ${JSON.stringify(files)}) {
      const { PrismaClient } = await import(file)
      // A client compares the provider with its own at once, and connects at its first query.
      const adapter = { provider, adapterName: 'none', connect() { throw new Error('unused') } }
      console.log(provider, 'lacks', missingFromClient(new PrismaClient({ adapter })))
    }`
}

test('Prisma generates clients that have all the library needs', async (t) => {
  const folder = t.testdir({
    postgresql: { 'schema.prisma': schemaFor('postgresql') },
    mysql: { 'schema.prisma': schemaFor('mysql') },
    sqlite: { 'schema.prisma': schemaFor('sqlite') },
  })
  await Promise.all(
    PROVIDERS.map(async (provider) => {
      await init({ cwd: join(folder, provider), path: undefined, mode: 'write' })
      const generated = await runPrisma(join(folder, provider), 'generate', '--no-hints')
      t.match(generated, { exitCode: 0 }, provider)
    }),
  )
  t.same(await runSource(folder, whatClientsLack(folder)), {
    stdout: 'postgres lacks []\nmysql lacks []\nsqlite lacks []\n',
    stderr: '',
    exitCode: 0,
  })
})

test('prisma format leaves what is added as it is', async (t) => {
  // MySQL is where most is adapted; the other lines are the same for every provider.
  const folder = t.testdir({ 'schema.prisma': schemaFor('mysql') })
  await init({ cwd: folder, path: undefined, mode: 'write' })
  const written = await readFile(join(folder, 'schema.prisma'), 'utf8')
  t.match(await runPrisma(folder, 'format'), { exitCode: 0 })
  t.equal(await readFile(join(folder, 'schema.prisma'), 'utf8'), written)
})

test('Prisma accepts a folder with Windows newlines and several database schemas', async (t) => {
  const main = schemaFor('postgresql', '  schemas  = ["base", "public"]\n')
  const user = 'model User {\n  id Int @id\n\n  @@schema("base")\n}'
  const windows = (text: string) => text.replaceAll('\n', '\r\n')
  const folder = t.testdir({
    prisma: { 'schema.prisma': windows(main), 'user.prisma': windows(user) },
  })
  await init({ cwd: folder, path: 'prisma', mode: 'write' })
  t.match(await runPrisma(folder, 'validate', '--schema', 'prisma'), { exitCode: 0 })
})
