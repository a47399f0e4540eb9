"""Program → flat aten source."""
