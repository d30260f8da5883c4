// Writes the table of examples in docs/providers.md from test/fixtures/providers/: npm run docs:providers
import { readFile, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { type ProviderExamples, readProviderExamples } from '../test/fixtures/provider-examples.js'

const file = new URL('../docs/providers.md', import.meta.url)
const SECTION = /(?<=<!-- examples:start -->\n).*?(?=<!-- examples:end -->)/s
const LONGEST_CELL = 60

/** The document with its table as the examples are. @throws for a document without the markers. */
export function withExamples(document: string, all: Iterable<ProviderExamples>): string {
  if (!SECTION.test(document)) throw new Error('docs/providers.md has no section for the examples')
  return document.replace(SECTION, () => tableOf(all))
}

function tableOf(all: Iterable<ProviderExamples>): string {
  const rows: string[] = []
  // Each page is listed once, below the table, so that a row fits a line.
  const pages = new Map<string, string>()
  for (const { provider, examples } of all) {
    for (const { title, source, checked, events } of examples) {
      const label = pages.get(source) ?? `${provider}-${countOf(pages, provider) + 1}`
      pages.set(source, label)
      for (const { eventId, type, object } of events) {
        const names = [eventId, type, object].map((name) => (name === null ? '–' : code(name)))
        const cells = [code(provider), cell(title), ...names, `[page][${label}]`, checked]
        rows.push(`| ${cells.join(' | ')} |`)
      }
    }
  }
  const links = [...pages].map(([source, label]) => `[${label}]: ${source}`)
  const head = [
    '| provider | example | event id | type | object | source | checked |',
    '|---|---|---|---|---|---|---|',
  ]
  return `${[...head, ...rows, '', ...links].join('\n')}\n`
}

function countOf(pages: ReadonlyMap<string, string>, provider: string): number {
  return [...pages.values()].filter((label) => label.replace(/-\d+$/, '') === provider).length
}

function code(name: string): string {
  return `\`${cell(name.length > LONGEST_CELL ? `${name.slice(0, LONGEST_CELL)}…` : name)}\``
}

function cell(text: string): string {
  return text.replaceAll('|', '\\|').replaceAll('`', "'")
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const document = await readFile(file, 'utf8')
  await writeFile(file, withExamples(document, readProviderExamples().values()))
}
