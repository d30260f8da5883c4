/** What somebody who starts the example can mend: its message is shown without a stack. */
export class CannotStart extends Error {
  override name = 'CannotStart'
}
