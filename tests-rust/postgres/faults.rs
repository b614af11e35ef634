//! What happens to a server.
