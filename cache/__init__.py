"""What is stored: namespaces, the radix tree, blocks, loans and eviction."""
