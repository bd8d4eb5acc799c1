"""Made-up records that need no files: tasks of the synthetic world, and tasks over real things."""
