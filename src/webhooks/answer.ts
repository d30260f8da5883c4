import type { FastifyReply } from 'fastify'
import type { Endpoint } from './endpoint.js'
import type { Answer, DeliveryOutcome } from './provider.js'

/** When a provider that listens to it should come back, in seconds: runs are usually about to end. */
const RETRY_AFTER = { 'retry-after': '5' }

/**
 * What everybody is told, from the worst outcome to the best: of a batch, the worst one counts, and
 * the whole batch is delivered again. Only what is done, or durable and nobody's to repeat, is
 * acknowledged. A dead event is: delivering it again would not help, and some providers drop a
 * subscription that fails for too long.
 */
const ANSWERS: Record<DeliveryOutcome, Answer> = {
  failed: { status: 500 },
  running: { status: 503, headers: RETRY_AFTER },
  postponed: { status: 503, headers: RETRY_AFTER },
  dead: { status: 200 },
  accepted: { status: 200 },
  processed: { status: 200 },
  duplicate: { status: 200 },
  ignored: { status: 200 },
}

const WORST_FIRST = Object.keys(ANSWERS) as DeliveryOutcome[]

/** The outcome that a request is answered for; a batch without an event is nothing to do. */
export function worstOf(outcomes: readonly DeliveryOutcome[]): DeliveryOutcome {
  return WORST_FIRST.find((outcome) => outcomes.includes(outcome)) ?? 'ignored'
}

/**
 * Outcomes of an event that is durable and will be run again. A provider that delivers nothing twice can do
 * nothing about them, and an error only counts against the webhook.
 */
const ARE_OURS: ReadonlySet<DeliveryOutcome> = new Set(['failed', 'running', 'postponed'])

/** Answers as the endpoint says, or its provider, or as everybody is answered. */
export function answerOutcome(
  reply: FastifyReply,
  endpoint: Endpoint,
  outcome: DeliveryOutcome,
  isRedelivered: boolean,
): FastifyReply {
  const isOurs = !isRedelivered && ARE_OURS.has(outcome)
  const answer = answerTo(endpoint, outcome, isOurs ? 'accepted' : outcome)
  return send(reply, { body: { outcome }, ...answer })
}

/** Whether a 2xx answers an event that is not done: then its provider does not deliver it again. */
export function acknowledgesUndone(endpoint: Endpoint): boolean {
  return [...ARE_OURS].some((outcome) => answerTo(endpoint, outcome, outcome).status < 300)
}

function answerTo(
  { provider, settings }: Pick<Endpoint, 'provider' | 'settings'>,
  outcome: DeliveryOutcome,
  told: DeliveryOutcome,
): Answer {
  return settings.answers[outcome] ?? provider.answers?.[told] ?? ANSWERS[told]
}

export function send(reply: FastifyReply, { status, headers, body }: Answer): FastifyReply {
  reply.code(status).headers({ ...headers })
  if (typeof body === 'string' && !reply.hasHeader('content-type')) {
    reply.header('content-type', 'text/plain; charset=utf-8')
  }
  return reply.send(body)
}
