/** What a database answers with when what was asked has not happened. */
export class DatabaseError extends Error {
  readonly code: string

  constructor(code: string) {
    super(`the database says ${code}`)
    this.code = code
  }
}
