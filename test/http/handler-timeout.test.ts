// Fastify's handlerTimeout answers for a handler that still runs. What the handler sends after that is not
// sent to the client, and says how the operation ended.
import type { FastifyReply } from 'fastify'
import t, { test } from 'tap'
import { errors } from '../../src/index.js'
import { buildApp, latch, newKey, recordOf, send } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { until } from '../fixtures/until.js'

const database = await anyDatabase(t)

type Late = (reply: FastifyReply) => unknown

/** Ways in which a handler waits and then answers. */
const WAYS: Record<string, (answer: Late, go: Promise<void>, reply: FastifyReply) => unknown> = {
  'calls back': (answer, go, reply) => {
    void go.then(() => answer(reply))
  },
  'returns the reply and calls back': (answer, go, reply) => {
    void go.then(() => answer(reply))
    return reply
  },
  'is async, returns the reply and calls back': async (answer, go, reply) => {
    void go.then(() => answer(reply))
    return reply
  },
  'is async and sends': async (answer, go, reply) => {
    await go
    answer(reply)
  },
  'is async and returns what it has sent': async (answer, go, reply) => {
    await go
    return answer(reply)
  },
}

const ANSWERS: { name: string; answer: Late; isDone: boolean }[] = [
  { name: 'a success', answer: (reply) => reply.code(201).send({ paid: true }), isDone: true },
  { name: 'nothing, as a success', answer: (reply) => reply.code(204).send(), isDone: true },
  { name: 'a refusal', answer: (reply) => reply.code(422).send('no'), isDone: true },
  { name: 'a failure', answer: (reply) => reply.code(500).send('broken'), isDone: false },
  // The status that the timeout has, too.
  { name: 'the status 503', answer: (reply) => reply.code(503).send('later'), isDone: false },
  { name: 'an error', answer: (reply) => reply.send(new Error('broken')), isDone: false },
  {
    name: 'an error with a status that is kept',
    answer: (reply) => reply.send(Object.assign(new Error('no'), { statusCode: 402 })),
    isDone: true,
  },
  {
    name: 'an error of the library',
    answer: (reply) => reply.send(new errors.StepTooLate()),
    isDone: false,
  },
]

for (const [way, wait] of Object.entries(WAYS)) {
  for (const { name, answer, isDone } of ANSWERS) {
    test(`a handler that ${way}, too late: ${name} ${isDone ? 'is the end of it' : 'frees the key'}`, async (t) => {
      const go = latch()
      let runs = 0
      const app = await buildApp(t, database, {
        routes: (app) =>
          app.post('/things', { handlerTimeout: 300 }, (_request, reply) => {
            runs += 1
            return wait(answer, go.opened, reply) as undefined
          }),
      })
      // A retry is not to meet a timeout of its own.
      const patient = await buildApp(t, database, {
        routes: (app) => app.post('/things', () => 'again'),
      })
      let key: string
      // On a busy machine, the time can be over before the handler has begun.
      do {
        key = newKey()
        t.equal((await send(app, '/things', { key })).statusCode, 503)
      } while (runs === 0)
      t.equal((await send(patient, '/things', { key })).json().code, 'IDEMPOTENCY_IN_PROGRESS')
      t.match(await recordOf(database, key), { status: 'in_progress' })
      go.open()
      await until(
        () => recordOf(database, key),
        (record) => record?.status === (isDone ? 'completed' : 'released'),
      )
      const retry = await send(patient, '/things', { key })
      t.equal(
        isDone ? retry.json().code : retry.body,
        isDone ? 'IDEMPOTENCY_NOT_REPLAYABLE' : 'again',
      )
      t.equal(runs, 1)
    })
  }
}
