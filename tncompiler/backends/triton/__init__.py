"""Program → Triton kernels and the host function that launches them."""
