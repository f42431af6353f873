//! The HTTP, SSE and WebSocket surface.
