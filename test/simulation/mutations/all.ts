import { OF_ATOMIC_ROUTES } from './atomic-routes.js'
import { OF_BATCHES } from './batches.js'
import { OF_CLAIMS } from './claims.js'
import { OF_LEASES } from './leases.js'
import type { Mutation } from './mutation.js'
import { OF_THE_PORTABLE_STORE } from './portable-store.js'
import { OF_STATEMENTS } from './statements.js'
import { OF_STEPS } from './steps.js'
import { OF_WEBHOOKS } from './webhooks.js'

export const MUTATIONS: readonly Mutation[] = [
  ...OF_CLAIMS,
  ...OF_LEASES,
  ...OF_STEPS,
  ...OF_BATCHES,
  ...OF_ATOMIC_ROUTES,
  ...OF_WEBHOOKS,
  ...OF_THE_PORTABLE_STORE,
  ...OF_STATEMENTS,
]
