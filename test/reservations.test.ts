import t from 'tap'
import { reservationsContract } from './contracts/reservations.js'
import { WAYS } from './fixtures/ways.js'

for (const { name, skip, open } of WAYS) {
  // Reservations have no statements of their own.
  if (!name.endsWith('Prisma alone')) continue
  t.test(name.replace(', Prisma alone', ''), { skip }, async (t) => {
    await reservationsContract(t, await open(t))
  })
}
