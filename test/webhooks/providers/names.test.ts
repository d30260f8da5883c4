// What tells one event from another, where no single published request shows it.
import t from 'tap'
import type { Provider } from '../../../src/webhooks/provider.js'
import {
  discord,
  flutterwave,
  hubspot,
  mailgun,
  meta,
  paystack,
  twilio,
  zoom,
} from '../../../src/webhooks/providers/index.js'
import { type VerifiedEvent, verify } from '../../../src/webhooks/verify.js'
import { givenId } from '../../fixtures/provider-examples.js'

const KEY = Buffer.from('any')

/** The events of a request whose signature is not looked at, with the ids that the provider gives. */
async function eventsOf(
  provider: Provider,
  body: unknown,
): Promise<readonly Pick<VerifiedEvent, 'eventId' | 'type' | 'object' | 'payload'>[]> {
  const open: Provider = {
    ...provider,
    scheme: {
      algorithm: { kind: 'equality' },
      toKey: () => KEY,
      read: () => ({ content: [], signatures: [KEY] }),
    },
  }
  const result = await verify(open, {}, JSON.stringify(body))
  if (result.kind !== 'verified') throw new Error(result.kind)
  return result.events.map(({ eventId, type, object, payload }) => ({
    eventId: givenId(eventId),
    ...{ type, object, payload },
  }))
}

const idOf = async (provider: Provider, body: unknown) =>
  (await eventsOf(provider, body))[0]?.eventId ?? null

const facebook = meta({ secret: 's', verifyToken: 'x' })
const whatsapp = (value: object) => ({
  object: 'whatsapp_business_account',
  entry: [{ id: 'a-1', changes: [{ field: 'messages', value }] }],
})
const messenger = (item: object, list = 'messaging') => ({
  object: 'page',
  entry: [{ id: 'p-1', time: 1, [list]: [{ recipient: { id: 'p-1' }, ...item }] }],
})

t.test('each message and status of a WhatsApp change is an event of its own', async (t) => {
  const metadata = { phone_number_id: 'n-1' }
  const contacts = [{ wa_id: '1' }, { wa_id: '2' }]
  const messages = [
    { id: 'wamid.1', from: '1' },
    { id: 'wamid.2', from: '2' },
    { id: 'wamid.3', from: 'not among them' },
  ]
  const statuses = ['sent', 'delivered'].map((status) => ({
    id: 'wamid.9',
    status,
    timestamp: '7',
  }))
  const body = whatsapp({ metadata, contacts, messages, statuses })
  const events = await eventsOf(facebook, body)
  t.strictSame(
    events.map(({ eventId }) => eventId),
    ['wamid.1', 'wamid.2', 'wamid.3', 'wamid.9:sent:7', 'wamid.9:delivered:7'],
  )
  t.strictSame(
    events.map(({ payload }) => payload),
    [
      whatsapp({ metadata, contacts: [{ wa_id: '1' }], messages: [messages[0]] }),
      whatsapp({ metadata, contacts: [{ wa_id: '2' }], messages: [messages[1]] }),
      whatsapp({ metadata, contacts, messages: [messages[2]] }),
      whatsapp({ metadata, contacts, statuses: [statuses[0]] }),
      whatsapp({ metadata, contacts, statuses: [statuses[1]] }),
    ],
  )
})

t.test('a sender of WhatsApp without a number is known by the user id', async (t) => {
  const contacts = [{ user_id: 'US.1' }, { user_id: 'US.2' }]
  const messages = [{ id: 'wamid.1', from_user_id: 'US.2' }]
  const [event] = await eventsOf(facebook, whatsapp({ contacts, messages }))
  t.strictSame(event?.payload, whatsapp({ contacts: [contacts[1]], messages }))
})

t.test('no change of Meta is lost for an empty list in it', async (t) => {
  for (const value of [{ messages: [] }, { messages: [], statuses: [] }, {}]) {
    const body = whatsapp(value)
    const events = await eventsOf(facebook, body)
    t.strictSame(
      events.map(({ eventId, payload }) => ({ eventId, payload })),
      [{ eventId: null, payload: body }],
    )
  }
  const statuses = [{ id: 'wamid.9', status: 'read', timestamp: '7' }]
  const events = await eventsOf(facebook, whatsapp({ messages: [], statuses }))
  t.strictSame(
    events.map(({ eventId }) => eventId),
    ['wamid.9:read:7'],
  )
})

t.test('each member of a WhatsApp group has a status', async (t) => {
  const status = { id: 'wamid.9', status: 'read', timestamp: '7', recipient_id: 'group' }
  const statuses = ['1', '2'].map((id) => ({ ...status, recipient_participant_id: id }))
  const ids = (await eventsOf(facebook, whatsapp({ statuses }))).map(({ eventId }) => eventId)
  t.strictSame(ids, ['wamid.9:read:7:1', 'wamid.9:read:7:2'])
  const users = ['US.1', 'US.2'].map((id) => ({ ...status, recipient_participant_user_id: id }))
  const named = await eventsOf(facebook, whatsapp({ statuses: users }))
  t.equal(new Set(named.map(({ eventId }) => eventId)).size, 2)
})

t.test('a message of Messenger is told from its echo, its deletion and its edit', async (t) => {
  const bodies = [
    messenger({ message: { mid: 'm-1' } }),
    messenger({ message: { mid: 'm-1', is_echo: true } }),
    messenger({ message: { mid: 'm-1', is_deleted: true } }),
    messenger({ message: { mid: 'm-1' } }, 'standby'),
    messenger({ timestamp: 1, message_edit: { mid: 'm-1', num_edit: 1 } }),
    messenger({ timestamp: 2, message_edit: { mid: 'm-1', num_edit: 2 } }),
    messenger({ timestamp: 3, reaction: { mid: 'm-1', action: 'react' } }),
    messenger({ timestamp: 4, reaction: { mid: 'm-1', action: 'react' } }),
  ]
  const ids = await Promise.all(bodies.map((body) => idOf(facebook, body)))
  t.notOk(ids.includes(null))
  t.equal(new Set(ids).size, bodies.length)
})

t.test('what happens to messages is named without the time of its delivery', async (t) => {
  const read = messenger({ timestamp: 5, read: { watermark: 4 } })
  const again = { ...read, entry: read.entry.map((entry) => ({ ...entry, time: 99 })) }
  t.equal(await idOf(facebook, again), await idOf(facebook, read))
  t.not(await idOf(facebook, read), null)
})

t.test('a change of a page and an item without a time have no id', async (t) => {
  const changes = [{ field: 'feed', value: { message: 'hello', post_id: 'p' } }]
  t.equal(await idOf(facebook, { object: 'page', entry: [{ id: 'p-1', changes }] }), null)
  t.equal(await idOf(facebook, messenger({ optin: {} })), null)
})

t.test('associations and merges of HubSpot are told apart', async (t) => {
  const provider = hubspot({ secret: 's', url: 'https://example.com/hooks' })
  const times = { eventId: 1, subscriptionId: 2, occurredAt: 3 }
  const association = {
    ...times,
    associationType: 'CONTACT_TO_COMPANY',
    fromObjectId: 4,
    toObjectId: 5,
    associationRemoved: false,
  }
  const merge = { ...times, primaryObjectId: 4, mergedObjectIds: [5, 6] }
  const items = [
    association,
    { ...association, associationRemoved: true },
    { ...association, fromObjectId: 5, toObjectId: 4 },
    { ...association, associationType: 'DEAL_TO_COMPANY' },
    merge,
    { ...merge, mergedObjectIds: [5, 7] },
    { ...times, objectId: 4 },
    { ...times, objectId: 4, messageId: 'm-1' },
    { ...times, objectId: 4, portalId: 9 },
    { ...times, objectId: 4, portalId: 10 },
  ]
  const events = await eventsOf(provider, items)
  t.equal(events[0]?.eventId, '1:2:3:4:5:CONTACT_TO_COMPANY:false')
  t.equal(events[4]?.eventId, '1:2:3:4:5:6')
  t.equal(new Set(events.map(({ eventId }) => eventId)).size, items.length)
  t.strictSame(
    events.map(({ object }) => object),
    ['4', '4', '5', '4', '4', '4', '4', '4', '4', '4'],
  )
  // A repeated one differs in this alone.
  t.equal(await idOf(provider, [{ ...association, attemptNumber: 1 }]), events[0]?.eventId)
  t.equal(await idOf(provider, [{ ...times, mergedObjectIds: { toString: 1 } }]), null)
  t.equal(await idOf(provider, [times]), null)
  const { subscriptionId: _id, ...rest } = {
    ...association,
    subscriptionType: 'deal.associationChange',
  }
  const untold = '1:deal.associationChange:3:4:5:CONTACT_TO_COMPANY:false'
  t.equal(await idOf(provider, [rest]), untold)
})

t.test('the same id of Mailgun on another day is another event', async (t) => {
  const provider = mailgun({ signingKey: 's' })
  const body = (timestamp: unknown, token: string) => ({
    signature: { token },
    'event-data': { id: 'e-1', event: 'opened', timestamp },
  })
  const id = await idOf(provider, body(1_770_327_074.55, 'a'))
  t.equal(await idOf(provider, body(1_770_327_074.55, 'b')), id)
  t.not(await idOf(provider, body(1_770_413_474.55, 'a')), id)
  t.equal(await idOf(provider, body('soon', 'a')), null)
})

t.test('an event of Zoom is the same with another token for downloads', async (t) => {
  const provider = zoom({ secret: 's' })
  const body = { event: 'recording.completed', event_ts: 1, payload: { object: { id: 1 } } }
  const id = await idOf(provider, { ...body, download_token: 'a' })
  t.equal(await idOf(provider, { ...body, download_token: 'b' }), id)
  t.not(await idOf(provider, { ...body, event_ts: 2, download_token: 'a' }), id)
  t.equal(await idOf(provider, null), null)
})

t.test('an event of Discord without its time has no id', async (t) => {
  const provider = discord({ publicKey: '00'.repeat(32) })
  const event = { type: 'ENTITLEMENT_UPDATE', timestamp: 'T', data: { id: '1' } }
  t.equal(await idOf(provider, { type: 1, event }), 'ENTITLEMENT_UPDATE:T:1')
  t.equal(await idOf(provider, { type: 1, event: { ...event, timestamp: undefined } }), null)
  t.equal(await idOf(provider, { type: 1, event: { ...event, data: {} } }), null)
})

t.test('kinds that can repeat for one object are not named after it', async (t) => {
  const provider = flutterwave({ secret: 's' })
  const data = { id: 7, status: 'cancelled' }
  t.equal(await idOf(provider, { event: 'subscription.cancelled', data }), null)
  t.equal(await idOf(provider, { data }), null)
  const paid = paystack({ secret: 's' })
  t.equal(await idOf(paid, { event: 'charge.dispute.remind', data: { id: 7 } }), null)
  t.equal(await idOf(paid, { data: { id: 7 } }), null)
})

t.test('each CloudEvent of Twilio is an event', async (t) => {
  const provider = twilio({ authToken: 's', url: 'https://example.com/twilio' })
  const of = (id: string) => ({ specversion: '1.0', id, type: 'com.twilio.x' })
  t.match(await eventsOf(provider, [of('a'), of('b')]), [
    { eventId: 'a', type: 'com.twilio.x' },
    { eventId: 'b', type: 'com.twilio.x' },
  ])
})
