-- AlterTable
ALTER TABLE "webhook_event" ADD COLUMN     "other_bodies" INTEGER NOT NULL DEFAULT 0;
