"""Bundles: models that are handed on.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

IMPORTED = sa.text("direction = 'import' AND state IN ('quarantined', 'accepted')")


def upgrade() -> None:
    op.create_table(
        "bundles",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("direction", sa.String(length=10), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("purpose", sa.String(length=10), nullable=True),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("checkpoint_id", sa.String(length=64), nullable=True),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("content_digest", sa.String(length=64), nullable=True),
        sa.Column("facts", sa.JSON(), nullable=True),
        sa.Column("created_by", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("decided_by", sa.String(length=200), nullable=True),
        sa.Column("decided_at", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(direction = 'export' AND state = 'built') OR (direction = 'import' AND state IN "
            "('received', 'quarantined', 'accepted', 'rejected'))",
            name=op.f("ck_bundles_state"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_bundles_job_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_bundles_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bundles")),
    )
    with op.batch_alter_table("bundles", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_bundles_checkpoint_id"), ["checkpoint_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_bundles_content_digest"), ["content_digest"], unique=False)
        batch_op.create_index(batch_op.f("ix_bundles_job_id"), ["job_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_bundles_run_id"), ["run_id"], unique=False)
        batch_op.create_index(
            "uq_bundles_imported", ["content_digest", "purpose"], unique=True, sqlite_where=IMPORTED,
            postgresql_where=IMPORTED,
        )  # fmt: skip


def downgrade() -> None:
    with op.batch_alter_table("bundles", schema=None) as batch_op:
        batch_op.drop_index("uq_bundles_imported")
        batch_op.drop_index(batch_op.f("ix_bundles_run_id"))
        batch_op.drop_index(batch_op.f("ix_bundles_job_id"))
        batch_op.drop_index(batch_op.f("ix_bundles_content_digest"))
        batch_op.drop_index(batch_op.f("ix_bundles_checkpoint_id"))

    op.drop_table("bundles")
