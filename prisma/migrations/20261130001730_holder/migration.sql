-- AlterTable
ALTER TABLE "idempotency_record" ADD COLUMN     "claimed_at" TIMESTAMP(3),
ADD COLUMN     "holder" TEXT;
