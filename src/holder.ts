import { hostname } from 'node:os'

/** How a process is named for operators, in records and locks, unless the application names it. */
export function defaultHolder(): string {
  return `${hostname().slice(0, 200)}:${process.pid}`
}
