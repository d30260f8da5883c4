/** A cookie belongs to the client that got it; the others describe one connection, or one message on it. */
const NEVER_REPLAYED = [
  'set-cookie',
  ...['connection', 'keep-alive', 'proxy-connection', 'te', 'trailer'],
  ...['transfer-encoding', 'upgrade'],
]

/** Whether a response that is replayed may have a header of this name, in any case. */
export function isReplayable(name: string): boolean {
  return !NEVER_REPLAYED.includes(name.toLowerCase())
}
