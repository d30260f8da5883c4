// npm runs this, the script `dependencies`, after it has changed node_modules of a checkout, and never in
// an application that installs the package; `prepare` it would run there. Plain JavaScript, because an
// install without devDependencies has no tsx, and nothing to generate either.
import { createRequire } from 'node:module'

try {
  createRequire(import.meta.url).resolve('tsx')
} catch {
  process.exit(0)
}
await import('tsx')
const { generate } = await import('./generate.ts')
await generate()
