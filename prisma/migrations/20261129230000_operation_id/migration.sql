-- AlterTable
ALTER TABLE "idempotency_record" RENAME COLUMN "fence" TO "attempt";
ALTER TABLE "idempotency_record" ADD COLUMN     "operation_id" TEXT;
UPDATE "idempotency_record" SET "operation_id" = gen_random_uuid()::text;
ALTER TABLE "idempotency_record" ALTER COLUMN "operation_id" SET NOT NULL;
