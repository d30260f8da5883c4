// Every provider that is built in, one a file.
export { github } from './github.js'
export { type HmacOptions, hmac, type SecretOptions, type TolerantOptions } from './hmac.js'
export { stripe } from './stripe.js'
