import { test } from 'tap'
import { schemaInConfig } from '../../src/cli/prisma-config.js'

test('reads a literal path', async (t) => {
  for (const literal of [`'db/schema.prisma'`, `"db/schema.prisma"`, '`db/schema.prisma`']) {
    const source = `export default defineConfig({\n  schema: ${literal},\n})\n`
    t.same(schemaInConfig(source), { kind: 'path', path: 'db/schema.prisma' }, literal)
  }
  t.same(schemaInConfig(`module.exports = { "schema": 'db' }`), { kind: 'path', path: 'db' })
})

test('reads a path that is joined from literals', async (t) => {
  const source = `export default { schema: path.join('db', "schema.prisma") }`
  t.same(schemaInConfig(source), { kind: 'path', path: 'db/schema.prisma' })
})

test('passes over comments and other strings', async (t) => {
  const source = `
    // schema: 'old.prisma',
    /* schema: 'older.prisma', */
    export default { datasource: { url: 'postgres://host/db?schema=public' }, schema: 'new.prisma' }`
  t.same(schemaInConfig(source), { kind: 'path', path: 'new.prisma' })
})

test('tells a path that is computed from one that is not set', async (t) => {
  const unset = `export default { datasource: { url: 'postgres://host/db?schema=public' } }`
  t.same(schemaInConfig(unset), { kind: 'unset' })
  // biome-ignore lint/suspicious/noTemplateCurlyInString: it is the source of one
  for (const computed of ['pathOf(name)', "'db/' + name", '`db/${name}`', 'process.env.SCHEMA']) {
    t.same(
      schemaInConfig(`export default { schema: ${computed} }`),
      { kind: 'unreadable' },
      computed,
    )
  }
  t.same(schemaInConfig('export default { schema }'), { kind: 'unreadable' })
})
