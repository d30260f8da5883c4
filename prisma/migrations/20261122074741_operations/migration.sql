-- AlterTable
ALTER TABLE "idempotency_record" ADD COLUMN     "handler" TEXT,
ADD COLUMN     "input" JSONB,
ADD COLUMN     "steps" JSONB;

-- CreateIndex
CREATE INDEX "idempotency_record_handler_lease_until_idx" ON "idempotency_record"("handler", "lease_until");
