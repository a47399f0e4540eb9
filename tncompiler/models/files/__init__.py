"""Models as files: safetensors for the numbers, JSON in their header for what they mean."""
