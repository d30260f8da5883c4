// The package as an application gets it: packed from a clean checkout, installed from the tarball, and used on
// PostgreSQL from every kind of project.
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { runNode, runPrisma } from '../cli/run-command.js'
import { npm, packedPackage, temporaryFolder } from '../fixtures/packed.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'

const nodeModules = fileURLToPath(new URL('../../node_modules', import.meta.url))

interface Project {
  name: string
  type: 'module' | 'commonjs'
  compiler?: { tsc: string; options: object }
}

const IMPORTS = `
import { PrismaPg } from '@prisma/adapter-pg'
import { PrismaClient } from '@prisma/client'
import Fastify from 'fastify'
import idempotency, { errors } from 'fastify-idempotency'
import { stripe } from 'fastify-idempotency/webhooks'
import { Pool } from 'pg'
`
const TYPES = `
import type { Operation, RouteOptions } from 'fastify-idempotency'
import type { BullmqOptions } from 'fastify-idempotency/bullmq'
import type { Verification } from 'fastify-idempotency/webhooks'
export type All = [Operation, RouteOptions, BullmqOptions, Verification]
`
const REQUIRES = `
const { PrismaPg } = require('@prisma/adapter-pg')
const { PrismaClient } = require('@prisma/client')
const Fastify = require('fastify')
const { default: idempotency, errors } = require('fastify-idempotency')
const { stripe } = require('fastify-idempotency/webhooks')
const { Pool } = require('pg')
`
const APPLICATION = `
async function main() {
  const pool = new Pool({ connectionString: process.env.DATABASE_URL })
  const prisma = new PrismaClient({ adapter: new PrismaPg(pool) })
  const app = Fastify()
  await app.register(idempotency, { prisma, pool, tenant: false })
  let runs = 0
  app.post('/payments', { config: { idempotency: { required: true } } }, async (request, reply) => {
    runs += 1
    return reply.code(201).send({ runs, attempt: request.idempotency.attempt })
  })
  app.webhook('/stripe', { provider: stripe({ secret: 'whsec' }) }, async (event) => {
    await event.step('look', async () => event.attempt)
  })
  const post = (headers = {}) => app.inject({ method: 'POST', url: '/payments', headers })
  const withKey = { 'idempotency-key': 'of-' + process.argv[2] }
  const first = await post(withKey)
  const retry = await post(withKey)
  const withoutKey = await post()
  console.log(JSON.stringify({
    statuses: [first.statusCode, retry.statusCode, withoutKey.statusCode],
    isReplay: retry.headers['idempotent-replayed'],
    bodies: [first.body, retry.body],
    isKnownError: withoutKey.json().code === new errors.KeyMissing().code,
    runs,
  }))
  await app.close()
  await prisma.$disconnect()
  await pool.end()
}

void main()
`
const EXPECTED = {
  statuses: [201, 201, 400],
  isReplay: 'true',
  bodies: ['{"runs":1,"attempt":1}', '{"runs":1,"attempt":1}'],
  isKnownError: true,
  runs: 1,
}

/** A version that is installed here, so that npm has it in its cache. */
async function same(name: string): Promise<string> {
  const manifest = await readFile(join(nodeModules, name, 'package.json'), 'utf8')
  return `${name}@${JSON.parse(manifest).version}`
}

t.test('in an application', { skip: await missing('postgres') }, async (t) => {
  const { tarball } = await packedPackage(t)
  const { url } = await postgresDatabase(t)
  const folder = await temporaryFolder(t)
  await writeFile(join(folder, 'package.json'), '{ "private": true }')
  const others = [
    'fastify',
    '@prisma/client',
    '@prisma/adapter-pg',
    'pg',
    '@types/node',
    '@types/pg',
  ]
  const packages = [tarball, ...(await Promise.all(others.map(same))), 'typescript@7.0.2']
  const quietly = ['--prefer-offline', '--ignore-scripts', '--no-audit', '--no-fund']
  await npm(folder, 'install', ...quietly, ...packages)

  await writeFile(
    join(folder, 'schema.prisma'),
    'generator client {\n  provider = "prisma-client-js"\n}\ndatasource db {\n  provider = "postgresql"\n}\n',
  )
  const added = await npm(folder, 'exec', '--no', '--', 'fastify-idempotency', 'init')
  t.match(added, /^Added models IdempotencyRecord, WebhookEvent, /)
  t.match(await runPrisma(folder, 'generate', '--schema', 'schema.prisma'), { exitCode: 0 })

  const tsc = join(folder, 'node_modules/typescript/lib/tsc.js')
  // TypeScript 7 has no `node10`.
  const tsc5 = join(nodeModules, 'typescript/lib/tsc.js')
  const projects: Project[] = [
    { name: 'JavaScript, ES modules', type: 'module' },
    { name: 'JavaScript, CommonJS', type: 'commonjs' },
    { name: 'nodenext', type: 'module', compiler: { tsc, options: { module: 'nodenext' } } },
    { name: 'node16', type: 'module', compiler: { tsc, options: { module: 'node16' } } },
    { name: 'preserve', type: 'module', compiler: { tsc, options: { module: 'preserve' } } },
    {
      name: 'bundler',
      type: 'module',
      compiler: { tsc, options: { module: 'esnext', moduleResolution: 'bundler' } },
    },
    {
      name: 'CommonJS under nodenext',
      type: 'commonjs',
      compiler: { tsc, options: { module: 'nodenext' } },
    },
    {
      name: 'CommonJS under node10',
      type: 'commonjs',
      compiler: {
        tsc: tsc5,
        options: { module: 'commonjs', moduleResolution: 'node10', esModuleInterop: true },
      },
    },
  ]
  t.jobs = 4
  for (const [n, { name, type, compiler }] of projects.entries()) {
    t.test(`${name}: it compiles, starts, and replays a request`, async (t) => {
      const project = join(folder, `project-${n}`)
      await mkdir(project)
      await writeFile(join(project, 'package.json'), JSON.stringify({ type }))
      if (compiler) {
        await writeFile(join(project, 'app.ts'), IMPORTS + TYPES + APPLICATION)
        const options = { strict: true, skipLibCheck: false, target: 'es2022', types: ['node'] }
        const compilerOptions = { ...options, ...compiler.options }
        const configuration = JSON.stringify({ compilerOptions, files: ['app.ts'] })
        await writeFile(join(project, 'tsconfig.json'), configuration)
        const compiled = await runNode(folder, [compiler.tsc, '-p', project])
        t.strictSame(compiled, { stdout: '', stderr: '', exitCode: 0 })
      } else {
        const head = type === 'module' ? IMPORTS : REQUIRES
        await writeFile(join(project, 'app.js'), head + APPLICATION)
      }
      const env = { DATABASE_URL: url }
      const { stdout, stderr } = await runNode(project, ['app.js', String(n)], env)
      t.equal(stderr, '')
      t.strictSame(JSON.parse(stdout), EXPECTED)
    })
  }
})
