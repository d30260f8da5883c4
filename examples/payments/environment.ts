import { existsSync } from 'node:fs'
import { CannotStart } from './cannot-start.js'
import type { WebhookSecrets } from './webhooks.js'

export interface Environment {
  host: string
  port: number
  logLevel: string
  databaseUrl: string | undefined
  redisUrl: string | undefined
  secrets: WebhookSecrets
}

/** What everybody knows, to try the example with. */
export const DEMO_SECRETS: WebhookSecrets = {
  stripe: 'whsec_demo_stripe',
  github: 'demo_github',
  bank: 'demo_bank',
}

/** What the example is told by environment variables and `.env`; the former win. */
export function readEnvironment(): Environment {
  if (existsSync('.env')) process.loadEnvFile('.env')
  return parseEnvironment(process.env)
}

// An empty variable is one that is not set: `REDIS_URL= npm start` turns one off that .env sets.
export function parseEnvironment(variables: NodeJS.ProcessEnv): Environment {
  const { HOST, PORT, LOG_LEVEL, DATABASE_URL, REDIS_URL } = variables
  const { STRIPE_WEBHOOK_SECRET, GITHUB_WEBHOOK_SECRET, BANK_WEBHOOK_SECRET } = variables
  return {
    host: HOST || '127.0.0.1',
    port: readPort(PORT || '3000'),
    logLevel: readLogLevel(LOG_LEVEL || 'warn'),
    databaseUrl: DATABASE_URL || undefined,
    redisUrl: REDIS_URL || undefined,
    secrets: {
      stripe: STRIPE_WEBHOOK_SECRET || DEMO_SECRETS.stripe,
      github: GITHUB_WEBHOOK_SECRET || DEMO_SECRETS.github,
      bank: BANK_WEBHOOK_SECRET || DEMO_SECRETS.bank,
    },
  }
}

function readPort(text: string): number {
  const port = Number(text)
  if (Number.isInteger(port) && port >= 0 && port < 65_536) return port
  throw new CannotStart(`PORT must be a number from 0 (any free port) to 65535, and not "${text}"`)
}

const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent']

function readLogLevel(text: string): string {
  if (LOG_LEVELS.includes(text)) return text
  throw new CannotStart(`LOG_LEVEL must be one of ${LOG_LEVELS.join(', ')}, and not "${text}"`)
}
