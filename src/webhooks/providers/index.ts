// Every provider that is built in, one a file.
export { type AdyenOptions, adyen } from './adyen.js'
export { type AwsSnsOptions, awsSns } from './aws-sns.js'
export { type AzureEventGridOptions, azureEventGrid } from './azure-event-grid.js'
export { bitbucket } from './bitbucket.js'
export { calendly } from './calendly.js'
export { type DiscordOptions, discord } from './discord.js'
export { flutterwave } from './flutterwave.js'
export { github } from './github.js'
export { type GitlabOptions, gitlab } from './gitlab.js'
export { type GooglePubsubOptions, googlePubsub } from './google-pubsub.js'
export { type HmacOptions, hmac } from './hmac.js'
export { type HubspotOptions, hubspot } from './hubspot.js'
export { intercom } from './intercom.js'
export { jira } from './jira.js'
export { lemonSqueezy } from './lemon-squeezy.js'
export { linear } from './linear.js'
export { type MailgunOptions, mailgun } from './mailgun.js'
export { type MetaOptions, meta } from './meta.js'
export { type MicrosoftGraphOptions, microsoftGraph } from './microsoft-graph.js'
export type { SecretOptions, TolerantOptions } from './options.js'
export { paddle } from './paddle.js'
export { type PaypalOptions, paypal } from './paypal.js'
export { paystack } from './paystack.js'
export type { Fetch } from './pinned-certificates.js'
export { type PlaidOptions, plaid } from './plaid.js'
export { postmark } from './postmark.js'
export { razorpay } from './razorpay.js'
export { type SendgridOptions, sendgrid } from './sendgrid.js'
export {
  type BasicAuthOptions,
  basicAuth,
  type SharedSecretOptions,
  sharedSecret,
} from './shared-secret.js'
export { shopify } from './shopify.js'
export { slack } from './slack.js'
export { type SquareOptions, square } from './square.js'
export {
  clerk,
  openai,
  polar,
  resend,
  type StandardWebhooksOptions,
  standardWebhooks,
  supabase,
  svix,
} from './standard-webhooks.js'
export { stripe } from './stripe.js'
export { type TelegramOptions, telegram } from './telegram.js'
export { type TwilioOptions, twilio } from './twilio.js'
export { twitch } from './twitch.js'
export { vercel } from './vercel.js'
export { woocommerce } from './woocommerce.js'
export { workos } from './workos.js'
export { zendesk } from './zendesk.js'
export { zoom } from './zoom.js'
