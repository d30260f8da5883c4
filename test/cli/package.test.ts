import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { test } from 'tap'

const root = fileURLToPath(new URL('../../', import.meta.url))

test('the package has the models that init adds, and no tests', async (t) => {
  const args = ['pack', '--dry-run', '--json', '--ignore-scripts']
  const isWindows = process.platform === 'win32'
  const { stdout } = await promisify(execFile)('npm', args, { cwd: root, shell: isWindows })
  const paths: string[] = JSON.parse(stdout)[0].files.map(({ path }: { path: string }) => path)
  t.ok(paths.includes('prisma/idempotency.prisma'))
  // npm adds README and LICENSE itself; dist/ is there when it was built.
  const expected =
    /^(dist\/.*|docs\/[\w-]+\.md|prisma\/idempotency\.prisma|package\.json|[A-Z]+(\.md)?)$/
  t.same(
    paths.filter((path) => !expected.test(path)),
    [],
  )
})

test("the package's command is the source that the other tests run", async (t) => {
  const { bin } = JSON.parse(await readFile(`${root}package.json`, 'utf8'))
  const source = bin['fastify-idempotency'].replace('dist/', 'src/').replace('.js', '.ts')
  t.ok(existsSync(root + source), source)
  t.match(await readFile(root + source, 'utf8'), /^#!\/usr\/bin\/env node\n/)
})
