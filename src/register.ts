/**
 * Tells the library the type of the application's client, so that `tx` in `transaction` has the
 * application's models:
 *
 * ```ts
 * declare module 'fastify-idempotency' {
 *   interface Register { prisma: PrismaClient }
 * }
 * ```
 */
// biome-ignore lint/suspicious/noEmptyInterface: applications put their client into it
export interface Register {}

/** What Prisma leaves out of a client inside an interactive transaction. */
type NotInTransaction = '$connect' | '$disconnect' | '$on' | '$use' | '$extends' | '$transaction'

/** The `tx` of a transaction: the application's own client, or anything as long as it is not told. */
export type ApplicationTransaction = Register extends { prisma: infer Client }
  ? Omit<Client, NotInTransaction>
  : // biome-ignore lint/suspicious/noExplicitAny: nothing is known of the application's models
    any
