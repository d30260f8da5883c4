// npm runs this after `npm ci` in a checkout. Plain JavaScript, because an install without
// devDependencies has no tsx, and nothing to generate either.
import { createRequire } from 'node:module'

try {
  createRequire(import.meta.url).resolve('tsx')
} catch {
  process.exit(0)
}
await import('tsx')
const { generate } = await import('./generate.ts')
await generate()
