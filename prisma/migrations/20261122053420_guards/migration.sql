-- CreateTable
CREATE TABLE "named_lock" (
    "tenant_id" TEXT NOT NULL,
    "name" TEXT NOT NULL,
    "owner" TEXT NOT NULL,
    "holder" TEXT NOT NULL,
    "fence" BIGINT NOT NULL,
    "held_until" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "named_lock_pkey" PRIMARY KEY ("tenant_id","name")
);

-- CreateTable
CREATE TABLE "slot_reservation" (
    "id" TEXT NOT NULL,
    "tenant_id" TEXT NOT NULL,
    "resource" TEXT NOT NULL,
    "slot" TEXT NOT NULL,
    "holder" TEXT NOT NULL,
    "held_until" TIMESTAMP(3),
    "created_at" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "slot_reservation_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "status_change" (
    "id" TEXT NOT NULL,
    "tenant_id" TEXT NOT NULL,
    "entity" TEXT NOT NULL,
    "entity_id" TEXT NOT NULL,
    "from" TEXT NOT NULL,
    "to" TEXT NOT NULL,
    "occurred_at" TIMESTAMP(3),
    "reason" TEXT,
    "actor" TEXT,
    "created_at" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "status_change_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "named_lock_held_until_idx" ON "named_lock"("held_until");

-- CreateIndex
CREATE INDEX "slot_reservation_held_until_idx" ON "slot_reservation"("held_until");

-- CreateIndex
CREATE UNIQUE INDEX "slot_reservation_tenant_id_resource_slot_key" ON "slot_reservation"("tenant_id", "resource", "slot");

-- CreateIndex
CREATE INDEX "status_change_tenant_id_entity_entity_id_created_at_idx" ON "status_change"("tenant_id", "entity", "entity_id", "created_at");
