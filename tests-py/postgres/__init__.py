"""What only a bus over PostgreSQL does."""
