import { setImmediate as nextTurn } from 'node:timers/promises'
import type { FastifyRequest } from 'fastify'
import { copyInTurns } from '../core/copy.js'

/** What a handler gets of its request, as it was before the handler ran. */
export interface SavedInput {
  /** Gives the handler the same once more. */
  restore(): Promise<void>
}

/**
 * Saves body, parameters, query and headers, so that a handler that changes them can be run again. Costs
 * a copy of the body; a large one is copied in turns.
 *
 * @returns `undefined` when that cannot be: the body is a stream, or cannot be copied.
 */
export async function saveInput(request: FastifyRequest): Promise<SavedInput | undefined> {
  if (isBodyUnread(request)) return undefined
  const { body, params, query, raw } = request
  const headers = { ...raw.headers }
  const saved = await copyInTurns({ body, params, query }, nextTurn)
  if (saved === undefined) return undefined
  return {
    async restore() {
      Object.assign(request, await copyInTurns(saved, nextTurn))
      // In place: Node gives every reader the same object.
      for (const name of Object.keys(raw.headers)) delete raw.headers[name]
      Object.assign(raw.headers, headers)
    },
  }
}

/** Whether the handler reads the body itself, which it can do once. */
function isBodyUnread({ body, headers }: FastifyRequest): boolean {
  if (body !== undefined && body !== null) return false
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length']) > 0
}
