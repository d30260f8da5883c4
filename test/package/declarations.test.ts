// The package as it is published: built, and used by its name.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t from 'tap'

const run = promisify(execFile)
const root = fileURLToPath(new URL('../..', import.meta.url))

await run('npm', ['run', '--silent', 'build'], { cwd: root })

const REGISTER = `
  const app = require('fastify')()
  app.register(idempotency, {}).ready().then(
    () => console.log('started'),
    (error) => console.log(error.code, error.message),
  )`

t.test('it is imported and required by its name', async (t) => {
  for (const [type, load] of [
    ['commonjs', `const { default: idempotency } = require('fastify-idempotency')`],
    [
      'module',
      `import idempotency from 'fastify-idempotency'
       import { createRequire } from 'node:module'
       const require = createRequire(process.cwd() + '/')`,
    ],
  ] as const) {
    const { stdout } = await run(
      process.execPath,
      [`--input-type=${type}`, '--eval', `${load}${REGISTER}`],
      { cwd: root },
    )
    t.match(stdout, /IDEMPOTENCY_OPTION_INVALID.*option "prisma" must be/, type)
  }
})

t.test('webhooks and BullMQ are entries of their own', async (t) => {
  const { stdout } = await run(
    process.execPath,
    [
      '--input-type=module',
      '--eval',
      `import { hmac, stripe, verify } from 'fastify-idempotency/webhooks'
       import { bullmq } from 'fastify-idempotency/bullmq'
       console.log(typeof hmac, typeof stripe, typeof bullmq)
       console.log((await verify(stripe({ secret: 'whsec' }), {}, '')).reason)`,
    ],
    { cwd: root },
  )
  t.equal(stdout, 'function function function\nmissing_header\n')
})

t.test(
  'its declarations hold in a strict application, as does its addition to Fastify',
  async (t) => {
    const folder = t.testdir({
      'app.ts': `
      import Fastify from 'fastify'
      import idempotency, { type IdempotencyEvent, CHANNEL, errors } from 'fastify-idempotency'
      import { PrismaClient } from '${root}prisma/generated/postgresql/client.js'
      import { stripe, verify, type Verification } from 'fastify-idempotency/webhooks'
      import { bullmq } from 'fastify-idempotency/bullmq'
      import { Redis } from 'ioredis'
      declare const prisma: PrismaClient
      declare const redis: Redis
      const app = Fastify()
      await app.register(idempotency, { prisma, tenant: (request) => request.ip, wait: '5s' })
      app.post('/a', { config: { idempotency: { required: true, lease: '30s' } } }, async (request) => {
        const key: string | undefined = request.idempotency.key
        const signal: AbortSignal = request.idempotency.signal
        return { key, aborted: signal.aborted, attempt: request.idempotency.attempt + 1 }
      })
      const count: number = await app.idempotency.prune()
      app.webhook('/webhooks/stripe', { provider: stripe({ secret: 'whsec' }), tenant: 'a' }, async (event) => {
        await event.transaction((tx) => tx.payment.create({ data: { tenantId: event.tenantId, amount: 1, currency: 'EUR' } }))
        // @ts-expect-error the application's own models are known
        await event.transaction((tx) => tx.paymint.count(), { name: 'count' })
      })
      const verification: Verification = await verify(stripe({ secret: 'whsec' }), {}, '')
      app.post('/c', async (request) => {
        const recorded = await request.idempotency.recordEvent({ provider: 'bank', eventId: 'e' })
        if (!recorded.duplicate) await recorded.event.step('mail', () => 1)
        return recorded.duplicate ? recorded.event.status : recorded.event.attempt
      })
      // @ts-expect-error a mode that there is not
      app.webhook('/d', { provider: stripe({ secret: 'whsec' }), mode: 'later' }, () => {})
      await app.register(idempotency, { prisma, tenant: false, dispatch: bullmq({ connection: redis }) })
      declare module 'fastify-idempotency' {
        interface Register { prisma: PrismaClient }
      }
      // @ts-expect-error a lease that is no duration
      app.post('/b', { config: { idempotency: { lease: 'soon' } } }, async () => ({}))
      // @ts-expect-error a duration without a unit
      await app.register(idempotency, { prisma, tenant: false, wait: '5' })
      // @ts-expect-error a tenant must be said
      await app.register(idempotency, { prisma })
      export type Kinds = IdempotencyEvent['kind']
      export { count, CHANNEL, errors, verification }
    `,
      'tsconfig.json': JSON.stringify({
        compilerOptions: {
          strict: true,
          module: 'nodenext',
          target: 'es2022',
          noEmit: true,
          skipLibCheck: true,
          types: ['node'],
        },
        files: ['app.ts'],
      }),
    })
    const tsc = join(root, 'node_modules/typescript/bin/tsc')
    const { stdout } = await run(process.execPath, [tsc, '-p', folder], { cwd: root }).catch(
      (error: { stdout: string }) => error,
    )
    t.equal(stdout, '')
  },
)

for (const compilerOptions of [
  { module: 'node16' },
  { module: 'esnext', moduleResolution: 'bundler' },
]) {
  t.test(`its declarations compile with ${JSON.stringify(compilerOptions)}`, async (t) => {
    const folder = t.testdir({
      'app.mts': `
      import idempotency, { errors } from 'fastify-idempotency'
      import { stripe } from 'fastify-idempotency/webhooks'
      import { bullmq } from 'fastify-idempotency/bullmq'
      export { bullmq, errors, idempotency, stripe }
    `,
      'tsconfig.json': JSON.stringify({
        compilerOptions: {
          ...{ strict: true, skipLibCheck: false, target: 'es2022', noEmit: true, types: ['node'] },
          ...compilerOptions,
        },
        files: ['app.mts'],
      }),
    })
    const tsc = join(root, 'node_modules/typescript/bin/tsc')
    const { stdout } = await run(process.execPath, [tsc, '-p', folder], { cwd: root }).catch(
      (error: { stdout: string }) => error,
    )
    t.equal(stdout, '')
  })
}
