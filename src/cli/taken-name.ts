/** A model of the library's whose name, or table, the application uses for something of its own. */
export interface TakenName {
  readonly name: string
  /** The table that the library's model would have. */
  readonly table: string
  /** What has the one or the other, or both: `a model`, or `an enum`. */
  readonly by: { readonly what: string; readonly name: string; readonly table: string }
  readonly path: string
}

// The models that an application may go without, with the part that needs each. `IdempotencyRecord` is
// needed by every application.
const PARTS: ReadonlyMap<string, string> = new Map([
  ['WebhookEvent', 'webhooks (app.webhook, recordEvent, ingest, replay)'],
  ['NamedLock', "locks in the database (lock, unless option locks is 'redis' or 'memory')"],
  ['SlotReservation', 'reservations (reserve, confirm, cancel, availability)'],
  ['StatusChange', 'statuses that only go forward (advance)'],
])

/** Whether an application may leave a model to something of its own. */
export function isOptional({ name }: TakenName): boolean {
  return PARTS.has(name)
}

/** Says what became of a model that was left out, and what the application can choose. */
export function choiceOf(taken: TakenName, command: string): string {
  const part = PARTS.get(taken.name)
  return `${whatHasIt(taken)} fastify-idempotency needs its own model ${taken.name} for ${part}. An application that goes without these has nothing to do. To use them, ${remedy(taken)}, and run \`${command}\` again.`
}

/** Says why an application cannot go on like this. */
export function refusalOf(taken: TakenName): string {
  return `${whatHasIt(taken)} fastify-idempotency needs its own model ${taken.name} in every application: ${remedy(taken)}.`
}

function whatHasIt({ name, by, path }: TakenName): string {
  const what = `${by.what} ${by.name}`
  return by.name === name
    ? `${path} has ${what} that is the application's own.`
    : `${path} has ${what} with the table ${by.table}.`
}

function remedy({ name, table, by }: TakenName): string {
  if (by.name !== name) return `give the table of ${by.name} another name`
  if (by.table === table) return `give yours another name, and its table ${table} as well`
  return `give yours another name (\`@@map("${by.table}")\` keeps its name in the database)`
}
