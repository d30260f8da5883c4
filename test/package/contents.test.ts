// What npm publishes, as publint and Are The Types Wrong read it.
import { readdir, readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { checkPackage, createPackageFromTarballData } from '@arethetypeswrong/core'
import { publint } from 'publint'
import { formatMessage } from 'publint/utils'
import t from 'tap'
import { packedPackage } from '../fixtures/packed.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const manifest = JSON.parse(await readFile(`${root}package.json`, 'utf8'))
const { tarball, files } = await packedPackage(t)
const bytes = await readFile(tarball)

t.test('a clean checkout packs what is built, the documents, and nothing else', async (t) => {
  const pages = (await readdir(`${root}docs`)).filter((name) => name.endsWith('.md'))
  const sources = (await readdir(`${root}src`, { recursive: true })).filter((name) =>
    /(?<!\.d)\.ts$/.test(name),
  )
  const built = sources.flatMap((name) =>
    ['.js', '.d.ts'].map((ending) => `dist/${name.replaceAll('\\', '/').replace('.ts', ending)}`),
  )
  const own = ['CHANGELOG.md', 'LICENSE', 'README.md', 'SECURITY.md', 'package.json']
  const expected = [...own, 'prisma/idempotency.prisma', ...built, ...pages.map((n) => `docs/${n}`)]
  t.strictSame([...files].sort(), expected.sort())
})

t.test("the package's command is the source that the other tests run", async (t) => {
  const built: string = manifest.bin['fastify-idempotency']
  t.ok(files.includes(built))
  const source = built.replace('dist/', 'src/').replace('.js', '.ts')
  t.match(await readFile(root + source, 'utf8'), /^#!\/usr\/bin\/env node\n/)
})

t.test('publint finds nothing', async (t) => {
  const { messages, pkg } = await publint({ pack: { tarball: toArrayBuffer(bytes) }, strict: true })
  t.strictSame(
    messages.map((message) => formatMessage(message, pkg)),
    [],
  )
})

t.test('every entry has types under every resolution of TypeScript', async (t) => {
  const result = await checkPackage(createPackageFromTarballData(bytes))
  if (result.types === false) return t.fail('the package has no types')
  t.strictSame(Object.keys(result.entrypoints).sort(), Object.keys(manifest.exports).sort())
  // The package is ESM alone. Every Node of `engines` loads it by require(), and a second build for
  // CommonJS would have error classes and a registry of its own in the same process.
  const others = result.problems.filter(({ kind }) => kind !== 'CJSResolvesToESM')
  t.strictSame(others, [])
})

t.test('it has no script that an installation would run', async (t) => {
  // npm counts `prepare` among them where a package does not come from a registry.
  const ofInstallation = /^(pre|post)?(install|prepare)$/
  t.strictSame(
    Object.keys(manifest.scripts).filter((name) => ofInstallation.test(name)),
    [],
  )
  t.type(manifest.scripts.dependencies, 'string', 'npm runs it in a checkout alone')
})

t.test('every peer has a major version that it ends with', (t) => {
  for (const [name, range] of Object.entries<string>(manifest.peerDependencies)) {
    t.match(range, /^\^\d+\.\d+\.\d+( \|\| \^\d+\.\d+\.\d+)*$/, name)
  }
  t.end()
})

t.test('every package that a text says to install has a supported major version', async (t) => {
  const sources = (await readdir(`${root}src`, { recursive: true })).map((name) => `src/${name}`)
  const texts = [...files, ...sources].filter(
    (path) => /\.(md|ts)$/.test(path) && !path.startsWith('dist/'),
  )
  const { name, version, devDependencies, peerDependencies } = manifest
  const supported = { ...devDependencies, ...peerDependencies, [name]: version }
  let count = 0
  for (const path of texts) {
    for (const word of installedBy(await readFile(root + path, 'utf8'))) {
      count += 1
      const [, dependency = '', major] = /^(@?[^@]+)@?(\d*)/.exec(word) ?? []
      const ranges = String(supported[dependency]).split(' || ')
      t.ok(major && ranges.some((range) => range.match(/\d+/)?.[0] === major), `${path}: ${word}`)
    }
  }
  t.ok(count >= 8, `${count} packages`)
})

/** What the commands `npm install …` in a text name. */
function installedBy(text: string): string[] {
  const commands = text.matchAll(/\bnpm (?:install|i|add)((?: [\w@/.-]+)+)/g)
  const words = [...commands].flatMap(([, names = '']) => names.trim().split(' '))
  return words.filter((word) => !word.startsWith('-'))
}

function toArrayBuffer({ buffer, byteOffset, byteLength }: Buffer): ArrayBuffer {
  return new Uint8Array(buffer, byteOffset, byteLength).slice().buffer
}
