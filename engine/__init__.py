"""What is computed: loading, attention over lent blocks, batches, sampling; one thread."""
