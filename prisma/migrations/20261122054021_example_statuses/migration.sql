-- AlterTable
ALTER TABLE "payment" ADD COLUMN     "status" TEXT NOT NULL DEFAULT 'pending',
ADD COLUMN     "status_at" TIMESTAMP(3);

-- CreateTable
CREATE TABLE "booking" (
    "id" TEXT NOT NULL,
    "tenant_id" TEXT NOT NULL,
    "venue" TEXT NOT NULL,
    "evening" TEXT NOT NULL,
    "guest" TEXT NOT NULL,
    "created_at" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "booking_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "booking_tenant_id_idx" ON "booking"("tenant_id");
