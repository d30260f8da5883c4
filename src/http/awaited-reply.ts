import type { FastifyReply } from 'fastify'

/**
 * Tells whether somebody waits for the reply, as Fastify does for a handler that returned it: it will
 * be sent later. Of the value that arrives here that cannot be seen.
 */
export function watchThen(reply: FastifyReply): () => boolean {
  let isAwaited = false
  const { then } = Object.getPrototypeOf(reply) as FastifyReply
  // biome-ignore lint/suspicious/noThenProperty: a reply has one
  reply.then = (...handlers) => {
    isAwaited = true
    return then.apply(reply, handlers)
  }
  return () => isAwaited
}
