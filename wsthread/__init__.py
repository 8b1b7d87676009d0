"""Threaded, callback-based WebSocket client."""
