import createError from '@fastify/error'
import type { FastifyInstance } from 'fastify'
import type { PrismaClient } from '../../prisma/generated/postgresql/client.js'

interface Evening {
  venue: string
  /** A date: `2026-12-31`. */
  evening: string
}

interface Guest {
  guest: string
  /** How long the evening is kept for the guest, in seconds. */
  seconds?: number
}

const evening = {
  type: 'object',
  properties: {
    venue: { type: 'string', maxLength: 100 },
    evening: { type: 'string', format: 'date' },
  },
}

const evenings = {
  type: 'object',
  properties: {
    evenings: { type: 'string', pattern: '^\\d{4}-\\d\\d-\\d\\d(,\\d{4}-\\d\\d-\\d\\d)*$' },
  },
}

const guest = {
  type: 'object',
  required: ['guest'],
  additionalProperties: false,
  properties: {
    guest: { type: 'string', pattern: '^[\\p{L}\\p{N} .-]{1,100}$' },
    seconds: { type: 'integer', minimum: 1, maximum: 3600, default: 900 },
  },
}

const EveningTaken = createError('EVENING_TAKEN', 'The evening of %s is taken', 409)

const HoldMissing = createError('HOLD_MISSING', 'The evening of %s is not held for this guest', 409)

/** Venues by the evening: held while a guest pays, booked once he has. */
export function bookingRoutes(app: FastifyInstance, prisma: PrismaClient): void {
  app.post<{ Params: Evening; Body: Guest }>(
    '/venues/:venue/:evening/hold',
    { schema: { params: evening, body: guest } },
    async (request, reply) => {
      const { venue, evening } = request.params
      const { guest, seconds = 900 } = request.body
      const held = await request.idempotency.reserve({
        resource: `venue:${venue}`,
        slots: evening,
        holder: guest,
        hold: `${seconds}s`,
      })
      if (held.kind === 'taken') throw new EveningTaken(evening)
      return reply.code(held.isNew ? 201 : 200).send({ venue, evening, until: held.until })
    },
  )

  app.post<{ Params: Evening; Body: Guest }>(
    '/venues/:venue/:evening/booking',
    { schema: { params: evening, body: guest } },
    async (request, reply) => {
      const { venue, evening } = request.params
      const { guest } = request.body
      // The slot and the booking are one commit.
      const isNew = await prisma.$transaction(async (tx) => {
        const kept = await request.idempotency.confirm({
          resource: `venue:${venue}`,
          slots: evening,
          holder: guest,
          tx,
        })
        if (kept.kind === 'missing') throw new HoldMissing(evening)
        if (kept.isNew) {
          await tx.booking.create({ data: { tenantId: request.tenant, venue, evening, guest } })
        }
        return kept.isNew
      })
      return reply.code(isNew ? 201 : 200).send({ venue, evening, guest })
    },
  )

  app.get<{ Params: Pick<Evening, 'venue'>; Querystring: { evenings?: string } }>(
    '/venues/:venue',
    { schema: { params: evening, querystring: evenings } },
    async (request) => {
      const { evenings } = request.query
      const slots = await request.idempotency.availability({
        resource: `venue:${request.params.venue}`,
        ...(evenings && { slots: evenings.split(',') }),
      })
      // Who has it is nobody's business.
      return slots.map(({ slot, kind }) => ({ evening: slot, kind }))
    },
  )
}
