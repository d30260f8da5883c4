import { runInThisContext } from 'node:vm'
import t from 'tap'
import { failureOf } from '../src/events.js'

/** An error as Prisma throws it for what a driver has met. */
const ofPrisma = (code: string, cause: object) =>
  Object.assign(new Error('x'), { code, meta: { driverAdapterError: { cause } } })

t.test('a failure has a hint, whoever has met it', async (t) => {
  const failures: [string, object, RegExp][] = [
    [
      'a closed port, in a raw query',
      ofPrisma('P2010', { kind: 'DatabaseNotReachable' }),
      /reached/,
    ],
    ['the same in another call', ofPrisma('P1001', { kind: 'DatabaseNotReachable' }), /reached/],
    ['a host without an address', { code: 'ENOTFOUND' }, /reached/],
    ['a database that is not there', { code: '3D000' }, /no database of this name/],
    ['the same', ofPrisma('P1003', { originalCode: '1049' }), /no database of this name/],
    ['a user who may not', { code: '28000' }, /user or its password/],
    ['a wrong password', { code: '28P01' }, /user or its password/],
    ['no table, on MariaDB', ofPrisma('P2021', { originalCode: '1146' }), /migrate deploy/],
    ['no column, on MariaDB', ofPrisma('P2022', { originalCode: '1054' }), /migrate deploy/],
    ['a pool of MariaDB', ofPrisma('P2039', { originalCode: '45028' }), /reached.*pool/],
  ]
  for (const [what, error, hint] of failures) t.match(failureOf(error).hint, hint, what)
})

t.test('a failure names the line of the application, not those of packages', async (t) => {
  const thrownAt = (name: string, frames: string) => {
    const error = new Error('at nowhere (x)')
    error.stack = `Error: at nowhere (x)\n${frames}`
    return t.match(failureOf(error).at, name, frames)
  }
  const prisma =
    '    at vn.handle (/srv/node_modules/@prisma/client/src/runtime/RequestHandler.ts:238:13)'
  const node = '    at process.processTicksAndRejections (node:internal/process/task_queues:95:5)'
  const own = `    at seal (${new URL('../src/sealed.ts', import.meta.url)}:1:1)`
  const application = '    at async pay (file:///srv/app/payments.js:7:3)'
  thrownAt(
    'async pay (file:///srv/app/payments.js:7:3)',
    [prisma, node, own, application].join('\n'),
  )
  const anonymous = '    at async <anonymous> (/srv/app/webhooks.ts:23:7)'
  const list = '    at Array.forEach (<anonymous>)'
  thrownAt('async <anonymous> (/srv/app/webhooks.ts:23:7)', [prisma, list, anonymous].join('\n'))
  thrownAt('vn.handle (/srv/node_modules', [prisma, node, own].join('\n'))

  const error = runInThisContext('new Error("x")', { filename: '/srv/app/orders.js' })
  t.match(failureOf(error).at, '/srv/app/orders.js:1')
})
