-- AlterTable
ALTER TABLE "webhook_event" ADD COLUMN     "awaits_delivery" BOOLEAN NOT NULL DEFAULT false;
