import { readFile } from 'node:fs/promises'
import t from 'tap'
import * as errors from '../src/errors.js'
import { DEFAULTS } from '../src/options.js'

const read = (path: string) => readFile(new URL(`../${path}`, import.meta.url), 'utf8')
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

t.test('docs/options.md describes every option with its default, and no other', async (t) => {
  const text = await read('src/options.ts')
  const body = (name: string) => {
    const start = text.indexOf(`export interface ${name} `)
    return text.slice(start, text.indexOf('\n}', start))
  }
  const options = unique(
    [body('RouteOptions'), body('PluginOptions')].join('\n').matchAll(/^ {2}(\w+)\??:/gm),
  )
  const rows = new Map<string, string>()
  for (const line of (await read('docs/options.md')).split('\n')) {
    const name = /^\| `(\w+)`/.exec(line)?.[1]
    if (name) rows.set(name, line)
  }
  t.strictSame([...rows.keys()].sort(), options)
  for (const [name, value] of Object.entries(DEFAULTS)) {
    if (typeof value !== 'string' || name === 'docs') continue
    t.ok(rows.get(name)?.includes(`\`'${value}'\``), `${name}: ${value}`)
  }
})
