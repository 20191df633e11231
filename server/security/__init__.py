"""Who may ask (keys and scopes), and what may be opened (the media guard)."""
