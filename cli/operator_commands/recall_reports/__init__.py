"""Parts of what `annheal recall` shows."""
