-- CreateTable
CREATE TABLE "webhook_event" (
    "id" TEXT NOT NULL,
    "tenant_id" TEXT NOT NULL,
    "provider" TEXT NOT NULL,
    "event_id" TEXT,
    "endpoint" TEXT NOT NULL,
    "type" TEXT,
    "status" TEXT NOT NULL,
    "fence" INTEGER NOT NULL DEFAULT 0,
    "attempts" INTEGER NOT NULL DEFAULT 0,
    "deferrals" INTEGER NOT NULL DEFAULT 0,
    "due_at" TIMESTAMP(3),
    "deliveries" INTEGER NOT NULL DEFAULT 1,
    "delivered_at" JSONB NOT NULL,
    "payload" BYTEA NOT NULL,
    "headers" JSONB NOT NULL,
    "body_hash" TEXT NOT NULL,
    "same_body_as" TEXT,
    "lane" TEXT,
    "running_lane" TEXT,
    "steps" JSONB NOT NULL,
    "errors" JSONB NOT NULL,
    "received_at" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "webhook_event_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE UNIQUE INDEX "webhook_event_running_lane_key" ON "webhook_event"("running_lane");

-- CreateIndex
CREATE INDEX "webhook_event_due_at_id_idx" ON "webhook_event"("due_at", "id");

-- CreateIndex
CREATE INDEX "webhook_event_body_hash_idx" ON "webhook_event"("body_hash");

-- CreateIndex
CREATE INDEX "webhook_event_lane_status_idx" ON "webhook_event"("lane", "status");

-- CreateIndex
CREATE UNIQUE INDEX "webhook_event_tenant_id_provider_event_id_key" ON "webhook_event"("tenant_id", "provider", "event_id");
