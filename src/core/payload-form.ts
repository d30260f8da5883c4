import type { StoredResponse } from './record.js'

/**
 * In which form a payload is handed to `onSend` hooks. A `sized stream` has a `content-length`. Without
 * one of these, it is nothing, or bytes.
 */
export type PayloadForm = 'text' | 'bytes' | 'stream' | 'sized stream' | 'null'

type Headers = StoredResponse['headers']

/** Stands among the stored headers. Like those of HTTP/2, it has a name that no header can have. */
const PSEUDO_HEADER = ':payload'

/** The headers as they are stored with a body that is sent in this form. */
export function withForm(headers: Headers, form: PayloadForm | undefined): Headers {
  return form === undefined ? headers : { ...headers, [PSEUDO_HEADER]: form }
}

/** The headers as they are sent, and the form that was stored with them. */
export function takeForm(stored: Headers): { headers: Headers; form: string | undefined } {
  const { [PSEUDO_HEADER]: form, ...headers } = stored
  return { headers, form: typeof form === 'string' ? form : undefined }
}
