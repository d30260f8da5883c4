// NestJS on Fastify: its guards run in the handler's place, so they do not run for a replay.
import { createRequire } from 'node:module'
import type { CanActivate, ExecutionContext } from '@nestjs/common'
import type { NestFastifyApplication } from '@nestjs/platform-fastify'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import t, { type Test, test } from 'tap'
import idempotency, { type PluginOptions } from '../../src/index.js'
import { newKey, recordOf, send } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

// Not by import: the loaders of the test runner resolve the subpaths of these packages wrongly at times.
const require = createRequire(import.meta.url)
require('reflect-metadata')
const { Controller, Module, Post, Req, UnauthorizedException, UseGuards } =
  require('@nestjs/common') as typeof import('@nestjs/common')
const { NestFactory } = require('@nestjs/core') as typeof import('@nestjs/core')
const { FastifyAdapter } =
  require('@nestjs/platform-fastify') as typeof import('@nestjs/platform-fastify')

const database = await anyDatabase(t)

const USER = Symbol('user')

declare module 'fastify' {
  interface FastifyRequest {
    [USER]?: string | undefined
  }
}

const userOf = ({ headers }: FastifyRequest) =>
  /^Bearer (\w+)$/.exec(headers.authorization ?? '')?.[1]

class AuthGuard implements CanActivate {
  canActivate(context: ExecutionContext): boolean {
    const request = context.switchToHttp().getRequest<FastifyRequest>()
    if (userOf(request) === undefined) throw new UnauthorizedException()
    return true
  }
}

class Payments {
  static runs = 0

  pay(request: FastifyRequest) {
    Payments.runs += 1
    return { run: Payments.runs, secret: `for ${userOf(request)} alone` }
  }
}

class AppModule {}

// The decorators as they would stand at the classes, applied by hand.
const pay = Object.getOwnPropertyDescriptor(Payments.prototype, 'pay') as PropertyDescriptor
Controller()(Payments)
Post('/payments')(Payments.prototype, 'pay', pay)
UseGuards(AuthGuard)(Payments.prototype, 'pay', pay)
Req()(Payments.prototype, 'pay', 0)
Module({ controllers: [Payments] })(AppModule)

/** The application as docs/authorization.md sets it up, with or without its hook. */
async function nestApp(
  t: Test,
  plugin: Partial<PluginOptions>,
  addHooks: (fastify: FastifyInstance) => void = () => {},
): Promise<FastifyInstance> {
  const app = await NestFactory.create<NestFastifyApplication>(AppModule, new FastifyAdapter(), {
    logger: false,
  })
  t.teardown(() => app.close())
  const fastify: FastifyInstance = app.getHttpAdapter().getInstance()
  const pool = database.kind === 'postgres' ? { pool: database.pool } : {}
  await fastify.register(idempotency, {
    prisma: database.prisma,
    ...pool,
    tenant: false,
    ...plugin,
  })
  addHooks(fastify)
  await app.init()
  await fastify.ready()
  return fastify
}

const as = (user: string) => ({ headers: { authorization: `Bearer ${user}` } })

test('without the recipe, a request without credentials gets the replay: the guard does not run', async (t) => {
  const fastify = await nestApp(t, {})
  const key = newKey()
  const first = await send(fastify, '/payments', { key, ...as('ann') })
  t.equal(first.statusCode, 201)
  t.equal((await send(fastify, '/payments')).statusCode, 401, 'the guard refuses a request')
  // What the documentation warns of.
  t.equal((await send(fastify, '/payments', { key })).body, first.body)
})

test('with the recipe, a request without credentials gets no replay, and another user gets 422', async (t) => {
  const fastify = await nestApp(t, { principal: (request) => request[USER] }, (fastify) => {
    fastify.decorateRequest(USER)
    fastify.addHook('onRequest', async (request) => {
      request[USER] = userOf(request)
    })
  })
  const key = newKey()
  const first = await send(fastify, '/payments', { key, ...as('ann') })
  t.equal(first.statusCode, 201)
  const before = Payments.runs

  const anonymous = await send(fastify, '/payments', { key })
  t.equal(anonymous.statusCode, 403)
  t.equal(anonymous.json().code, 'IDEMPOTENCY_PRINCIPAL_UNKNOWN')
  const other = await send(fastify, '/payments', { key, ...as('bob') })
  t.equal(other.statusCode, 422)
  for (const { body } of [anonymous, other]) t.notMatch(body, 'ann')

  const retry = await send(fastify, '/payments', { key, ...as('ann') })
  t.equal(retry.body, first.body)
  t.equal(retry.headers['idempotent-replayed'], 'true')
  t.equal(Payments.runs, before)
  t.equal((await send(fastify, '/payments')).statusCode, 401, 'the guard decides without a key')
})

test('what a guard refuses is not stored: the key is free for a caller who may', async (t) => {
  const fastify = await nestApp(t, {})
  const key = newKey()
  t.equal((await send(fastify, '/payments', { key })).statusCode, 401)
  t.equal((await recordOf(database, key))?.status, 'released')
  t.equal((await send(fastify, '/payments', { key, ...as('ann') })).statusCode, 201)
})
