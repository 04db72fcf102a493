"""What we depend on, held against what is known of it."""
