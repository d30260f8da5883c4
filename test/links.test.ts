// Links of the documents, as a reader who has the package alone follows them.
import { readdir, readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { DEFAULTS } from '../src/options.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const read = (path: string) => readFile(`${root}${path}`, 'utf8')
const withoutCode = (text: string) => text.replace(/```.*?```/gs, '').replace(/`[^`\n]*`/g, 'code')

/** Those that npm packs, as test/package/contents.test.ts holds. */
async function documents(): Promise<string[]> {
  const docs = await readdir(`${root}docs`)
  const pages = docs.filter((name) => name.endsWith('.md')).map((name) => `docs/${name}`)
  return ['README.md', 'CHANGELOG.md', 'SECURITY.md', ...pages]
}

/** What a fragment may name: the headings, as GitHub turns them into anchors, and explicit anchors. */
async function anchorsOf(path: string): Promise<Set<string>> {
  const text = (await read(path)).replace(/```.*?```/gs, '')
  const headings = [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\s_-]/gu, '')
      .replaceAll(' ', '-'),
  )
  const explicit = [...text.matchAll(/<a id="([^"]*)"/g)].map(([, id = '']) => id)
  return new Set([...headings, ...explicit])
}

t.test(
  'every link of the documents leads to a document of the package, and to an anchor in it',
  async (t) => {
    let count = 0
    const packed = await documents()
    for (const from of packed) {
      for (const [, link = ''] of withoutCode(await read(from)).matchAll(/\]\(([^)\s]*)\)/g)) {
        if (/^https?:/.test(link)) continue
        count += 1
        const { pathname, hash } = new URL(link, `file:///${from}`)
        const path = pathname.slice(1)
        if (!packed.includes(path)) t.fail(`${from}: ${link}`)
        else if (hash !== '') t.ok((await anchorsOf(path)).has(hash.slice(1)), `${from}: ${link}`)
      }
    }
    t.ok(count > 80, `${count} links`)
  },
)

t.test('every address of the repository is the one of package.json', async (t) => {
  const manifest = JSON.parse(await read('package.json'))
  const repository: string = manifest.repository.url.replace(/^git\+|\.git$/g, '')
  t.equal(manifest.homepage, `${repository}#readme`)
  t.equal(manifest.bugs.url, `${repository}/issues`)
  t.equal(DEFAULTS.docs, `${repository}/blob/main/docs/errors.md`)
  for (const path of await documents()) {
    const text = await read(path)
    for (const [address] of text.matchAll(/https:\/\/github\.com\/[\w-]+\/fastify-idempotency/g)) {
      t.equal(address, repository, path)
    }
  }
})
