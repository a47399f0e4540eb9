"""What people already have: einsum equations on their arrays, and paths for them."""
