import t from 'tap'
import { errorCode } from '../../src/store/client.js'

const wrapped = (times: number, code: string): object =>
  times === 0 ? { code } : { cause: wrapped(times - 1, code) }

t.test('the code of an error is found in what caused it, up to a depth', async (t) => {
  t.equal(errorCode({ code: 'P2034' }), '40001')
  t.equal(errorCode({ cause: { cause: { code: 'ECONNREFUSED' } } }), 'ECONNREFUSED')
  t.equal(errorCode({ name: 'DriverAdapterError', cause: { originalCode: '40001' } }), '40001')
  // A raw query hides what other calls of Prisma's say.
  const cause = { kind: 'DatabaseNotReachable', host: 'x' }
  t.equal(errorCode({ code: 'P2010', meta: { driverAdapterError: { cause } } }), 'P1001')
  t.equal(errorCode(wrapped(8, 'x')), 'x')
  t.equal(errorCode(wrapped(9, 'x')), undefined)
  for (const nothing of [undefined, null, 'x', 5, {}, { cause: null }, new Error('x')]) {
    t.equal(errorCode(nothing), undefined)
  }
})

t.test('errors that cause themselves, or each other, have no code', async (t) => {
  const own = new Error('x')
  own.cause = own
  t.equal(errorCode(own), undefined)
  const [one, other] = [new Error('x'), new Error('y')]
  one.cause = other
  other.cause = one
  t.equal(errorCode(one), undefined)
})
