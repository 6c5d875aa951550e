"""From results on disk to answers: DuckDB views, named queries, formats."""
