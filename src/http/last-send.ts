import type { FastifyReply } from 'fastify'

/** Hands a payload on to the next hook. */
export type SendOn = (error: Error | null, payload?: unknown) => void

/**
 * Calls back with what goes out once it is recorded, unless something else was sent meanwhile, as
 * Fastify does when `handlerTimeout` ends just then: two answers are one too many.
 */
export class LastSend {
  readonly #reply: FastifyReply
  #sends = 0

  constructor(reply: FastifyReply) {
    this.#reply = reply
  }

  sendWhen(recorded: Promise<unknown>, done: SendOn): void {
    this.#sends += 1
    const turn = this.#sends
    const reply = this.#reply
    recorded.then(
      (sent) => {
        if (turn !== this.#sends) return
        try {
          done(null, sent)
        } catch (error) {
          // What hooks after this one added cannot be sent. Nobody else would catch it here.
          if (reply.raw.headersSent) reply.raw.destroy()
          else reply.send(error)
        }
      },
      (error) => {
        if (turn === this.#sends) done(error)
      },
    )
  }
}
