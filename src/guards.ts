import type { FastifyBaseLogger } from 'fastify'
import { reporter } from './events.js'
import { createLocks, type LocksSettings } from './locks/create-locks.js'
import type { LockResult, LockRoutine, Locks } from './locks/locks.js'
import type { LockOptions } from './locks/options.js'
import { demandModel } from './models.js'
import { once } from './once.js'
import {
  type Availability,
  type AvailabilityOptions,
  type Cancelled,
  type Confirmed,
  createReservations,
  type Missing,
  type Reservations,
  type Reserved,
  type ReserveOptions,
  type SlotsOptions,
  type Taken,
} from './reservations.js'
import { sealed, sealedInTransaction } from './sealed.js'
import { type AdvanceResult, createStatuses, type Statuses } from './status/advance.js'
import type { AdvanceOptions, StatusDelegate } from './status/options.js'
import { boundedCall, boundedClient, limitedClient } from './store/bounded-client.js'
import { hasModel, type PrismaClientLike } from './store/client.js'

/** What keeps different operations on the same thing apart. Names, resources and audits are a tenant's. */
export interface Guards {
  /**
   * Runs `routine` while nobody else holds any of `names`: all of them are taken, or none. The lock is
   * renewed while the routine runs; `signal` is aborted when it could not be kept, and `fence`, a
   * number that only rises, guards what the routine writes. A lock saves work; what must not happen
   * twice needs a constraint, or a write that is guarded by the fence.
   *
   * A process that dies leaves the lock for at most `ttl`. A release that fails is only told: the
   * routine's result is the result.
   *
   * @throws IDEMPOTENCY_LOCK_UNAVAILABLE (503) when nobody can say who holds it; nothing ran. What the
   * routine throws.
   */
  lock<T>(
    names: string | readonly string[],
    options: LockOptions,
    routine: LockRoutine<T>,
  ): Promise<LockResult<T>>
  /**
   * Holds all of the slots for the holder, or none. Asking again gets the same reservation, and does
   * not prolong it. A hold that has run out is free for whoever comes next. A process that dies
   * meanwhile leaves all of them held, or none.
   *
   * @throws IDEMPOTENCY_DATABASE_FAILED (503), as the three below, also when the database does not answer
   * within `storeTimeout`: repeat it, it happens once. WriteConflict when the database rolled it back for
   * another transaction.
   */
  reserve(options: ReserveOptions): Promise<Reserved | Taken>
  /** Keeps all of the slots for good, or none; twice is the same as once. */
  confirm(options: SlotsOptions): Promise<Confirmed | Missing>
  /** Frees those of the slots that are the holder's; twice is the same as once. */
  cancel(options: SlotsOptions): Promise<Cancelled>
  /** Who has which slots now. To be shown, not to be relied upon: `reserve` decides. */
  availability(options: AvailabilityOptions): Promise<Availability[]>
  /**
   * Gives one entity another status if its flow allows it, and notes that in `StatusChange` in the
   * same transaction: that of the delegate (`tx.payment`), or one of its own (`prisma.payment`). After
   * a crash there are both or none, and saying it again is `unchanged`.
   *
   * @throws as `reserve` does. IDEMPOTENCY_OPTION_INVALID for what Prisma cannot use.
   */
  advance<Status extends string, Delegate extends StatusDelegate>(
    delegate: Delegate,
    options: AdvanceOptions<Status, Delegate>,
  ): Promise<AdvanceResult<Status>>
  /** Creates what a unique constraint of yours allows once, and finds it when it is there. */
  once: typeof once
}

/** Whose guards they are, and where they tell what they do. */
export interface GuardsFor {
  readonly tenantId: () => string | Promise<string>
  readonly log: FastifyBaseLogger
  /** The route, or the endpoint, that uses them. */
  readonly route?: string | undefined
}

/** The guards of an application. */
export interface ApplicationGuards {
  of(subject: GuardsFor): Guards
  /** What deletes, batch by batch, what is kept for nobody any more. */
  prunes(): ((limit: number) => Promise<number>)[]
  /** Nobody waits for a lock from now on. */
  close(): void
}

export interface GuardsSettings extends LocksSettings {
  /** The application's client as it was given: its models are changed through it. */
  readonly application: PrismaClientLike
  /** Makes sure that the database tells all names apart: `confirm` and `cancel` write without a look. */
  readonly demandExactNames: () => Promise<void>
}

/** Each part is made when it is used: an application may lack the tables of the others. */
export function createGuards(settings: GuardsSettings): ApplicationGuards {
  const { prisma, application, clock, provider, demandExactNames, limits, patienceMs } = settings
  const bounds = { limit: limits.begin, timeoutMs: patienceMs }
  let locks: Locks | undefined
  let statuses: Statuses | undefined
  let isClosed = false

  function openLocks(): Locks {
    if (locks === undefined) {
      locks = createLocks(settings)
      if (isClosed) locks.close()
    }
    return locks
  }

  function openReservations(client: PrismaClientLike): Reservations {
    demandModel(prisma, 'slotReservation')
    return createReservations({ prisma: client, clock: clock.through(client), provider })
  }

  /** A call about slots, which is bounded unless the caller's transaction is. */
  function onReservations<T>(
    options: Partial<SlotsOptions> | undefined,
    call: (reservations: Reservations) => Promise<T>,
  ): Promise<T> {
    if (options?.tx !== undefined) return call(openReservations(prisma))
    return boundedCall(bounds, async (own) => call(openReservations(limitedClient(prisma, own))))
  }

  function changeSlots<T>(
    call: string,
    options: Partial<SlotsOptions> | undefined,
    change: (slots: Reservations) => Promise<T>,
  ): Promise<T> {
    return sealedInTransaction(call, () =>
      onReservations(options, async (slots) => {
        await demandExactNames()
        return change(slots)
      }),
    )
  }

  function openStatuses(): Statuses {
    demandModel(prisma, 'statusChange')
    statuses ??= createStatuses({ prisma: application, provider, bounds })
    return statuses
  }

  // So that Redis is looked at when the application starts, and not when the first lock is taken.
  const { kind, redis } = settings
  const mayUseRedis = kind === 'redis' || (kind === 'auto' && hasModel(prisma, 'namedLock'))
  if (mayUseRedis && redis.length > 0) openLocks()

  return {
    of({ tenantId, log, route }) {
      const subjectOf = async () => {
        const tenant = await tenantId()
        return [tenant, reporter(log, route, { tenantId: tenant })] as const
      }
      return {
        async lock(names, options, routine) {
          return openLocks().lock(...(await subjectOf()), names, options, routine)
        },
        async reserve(options) {
          const subject = await subjectOf()
          return changeSlots('reserve()', options, (slots) => slots.reserve(...subject, options))
        },
        async confirm(options) {
          const subject = await subjectOf()
          return changeSlots('confirm()', options, (slots) => slots.confirm(...subject, options))
        },
        async cancel(options) {
          const subject = await subjectOf()
          return changeSlots('cancel()', options, (slots) => slots.cancel(...subject, options))
        },
        async availability(options) {
          const tenant = await tenantId()
          return sealed('availability()', () =>
            onReservations(undefined, (reservations) => reservations.availability(tenant, options)),
          )
        },
        async advance(delegate, options) {
          const subject = await subjectOf()
          return sealedInTransaction('advance()', () =>
            openStatuses().advance(...subject, delegate, options),
          )
        },
        once,
      }
    },
    // Also what other processes have left behind that keep theirs in the same place.
    prunes: () => [
      ...(hasModel(prisma, 'namedLock') ? [(limit: number) => openLocks().prune(limit)] : []),
      ...(hasModel(prisma, 'slotReservation')
        ? [(limit: number) => openReservations(boundedClient(prisma, bounds)).prune(limit)]
        : []),
    ],
    close() {
      isClosed = true
      locks?.close()
    },
  }
}
