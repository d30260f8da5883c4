import { connect } from 'node:net'

/** How long to wait for the server to take a cancel request. */
const TIMEOUT_MS = 1_000
const CANCEL_REQUEST_CODE = 80877102

/**
 * Asks PostgreSQL to cancel what a connection is running, over a connection of its own, as its
 * protocol has it: a pooler in front forwards it, and no connection of the pool is needed. The server
 * takes such a request without TLS and without authentication; the secret key of the connection is the
 * permission. Settles once the server has taken the request, or cannot be reached. Never rejects.
 */
export function cancelStatement(client: object): Promise<void> {
  const { host, port, processID, secretKey } = client as {
    host?: unknown
    port?: unknown
    processID?: unknown
    secretKey?: unknown
  }
  // A driver that does not say: its statement ends when the server ends it.
  if (typeof host !== 'string' || typeof processID !== 'number' || typeof secretKey !== 'number') {
    return Promise.resolve()
  }
  const request = Buffer.alloc(16)
  request.writeInt32BE(16, 0)
  request.writeInt32BE(CANCEL_REQUEST_CODE, 4)
  request.writeInt32BE(processID, 8)
  request.writeInt32BE(secretKey, 12)
  return new Promise((resolve) => {
    const socket = host.startsWith('/')
      ? connect(`${host}/.s.PGSQL.${port}`)
      : connect(Number(port), host)
    socket.setTimeout(TIMEOUT_MS, () => socket.destroy())
    socket.on('error', () => {})
    // The server closes the connection once it has signaled the other one.
    socket.on('close', () => resolve())
    socket.on('connect', () => socket.write(request))
    socket.resume()
  })
}
