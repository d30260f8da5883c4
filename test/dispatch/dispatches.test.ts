import { Redis } from 'ioredis'
import t from 'tap'
import { bullmq } from '../../src/dispatch/bullmq.js'
import { type InProcessOptions, inProcess } from '../../src/dispatch/in-process.js'
import { dispatchContract } from '../contracts/dispatch.js'
import { redisClient } from '../fixtures/redis.js'
import { missing } from '../fixtures/services.js'

t.test('in the process', async (t) => {
  await dispatchContract(t, ({ concurrency, lookEvery }) =>
    inProcess({ concurrency, pollEvery: lookEvery }),
  )
})

t.test('BullMQ', { skip: await missing('redis') }, async (t) => {
  const { url, prefix } = await redisClient(t)
  const connection = new Redis(url)
  t.teardown(() => connection.disconnect())
  await dispatchContract(t, ({ concurrency, lookEvery, name }) =>
    bullmq({ connection, prefix, queue: name, concurrency, sweepEvery: lookEvery }),
  )
})

t.test('in the process: options are checked, and the message says what to write', async (t) => {
  for (const [options, message] of [
    [{ concurrency: 0 }, /option "concurrency" of inProcess\(\) must be a whole number from 1/],
    [{ pollEvery: 'often' }, /option "pollEvery" .* such as '5s'/],
    [{ pollEvery: 9 }, /option "pollEvery"/],
    [{ sweepEvery: '5s' }, /option "sweepEvery" of inProcess\(\) is not known/],
  ] as const) {
    t.throws(() => inProcess(options as InProcessOptions), {
      code: 'IDEMPOTENCY_OPTION_INVALID',
      message,
    })
  }
})
