//! Which server a connection leads to: all connections of a bus must lead to the same one.
//!
//! When an address moves to another server while the old one lives, only the connections that broke
//! are made anew. One that stayed would write, or listen, where nobody else does.

use std::sync::Arc;

use redis::{Value, cmd};
use tokio::sync::watch;

use super::dial::{Connection, ask, refusal, says};
use super::registry::text;
use crate::config::Endpoint;
use crate::error::Result;
use crate::net;

/// What an operator is told when a server cannot be told from another.
pub(super) const UNKNOWN: &str = "identity of the server unknown: the user may not run INFO, so \
                                  connections that lead to different servers are not noticed; \
                                  grant +info";

/// Names one process of a server; none when the user may not ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ServerId(Option<Arc<str>>);

impl ServerId {
    pub(super) fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// Whether both are known, and differ.
    fn differs(&self, other: &Self) -> bool {
        self.is_known() && other.is_known() && self != other
    }
}

impl std::fmt::Display for ServerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or_default())
    }
}

/// Asks a server which one it is.
///
/// # Errors
/// `Connect` when it is a replica, or does not answer.
pub(super) async fn ask_server(
    connection: &mut Connection,
    endpoint: &Endpoint,
) -> Result<ServerId> {
    // Needs no right, unlike ROLE and INFO.
    match ask(connection, &cmd("HELLO")).await {
        Ok(answer) if !is_primary(&answer) => {
            return Err(net::failed(endpoint, &"it is a replica; give the address of its primary"));
        }
        Ok(_) => {}
        // A server that does not know the question tells no role; a write will.
        Err(error) if error.code().is_some() => {}
        Err(error) => return Err(refusal(endpoint, &error)),
    }
    match ask(connection, cmd("INFO").arg("server")).await {
        Ok(Value::VerbatimString { text, .. }) => Ok(ServerId(run_id(&text))),
        Ok(answer) => Ok(ServerId(text(answer).as_deref().and_then(run_id))),
        Err(error) if error.code() == Some("NOPERM") => Ok(ServerId(None)),
        Err(error) => Err(net::failed(endpoint, &says(&error))),
    }
}

fn run_id(info: &str) -> Option<Arc<str>> {
    let found = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    found.map(str::trim).filter(|id| !id.is_empty()).map(Arc::from)
}

/// Whether the answer to HELLO does not name a replica.
fn is_primary(answer: &Value) -> bool {
    let role = match answer {
        Value::Map(pairs) => pairs.iter().find(|(key, _)| is(key, "role")).map(|(_, role)| role),
        Value::Array(parts) => {
            parts.chunks_exact(2).find(|pair| is(&pair[0], "role")).map(|pair| &pair[1])
        }
        _ => None,
    };
    !role.is_some_and(|role| is(role, "replica") || is(role, "slave"))
}

fn is(value: &Value, word: &str) -> bool {
    match value {
        Value::BulkString(bytes) => bytes == word.as_bytes(),
        Value::SimpleString(text) => text == word,
        _ => false,
    }
}

/// The server that the newest connection of a bus leads to.
#[derive(Debug)]
pub(super) struct Servers(watch::Sender<ServerId>);

impl Default for Servers {
    fn default() -> Self {
        Self(watch::Sender::new(ServerId::default()))
    }
}

impl Servers {
    /// Takes note of a connection that was made.
    pub(super) fn newest(&self, server: ServerId) {
        if server.is_known() {
            self.0.send_replace(server);
        }
    }

    /// Returns the id of the server, empty when unknown.
    pub(super) fn current(&self) -> String {
        self.0.borrow().to_string()
    }

    /// Returns what waits for a move.
    pub(super) fn watch(&self) -> Moves {
        Moves(self.0.subscribe())
    }
}

/// Waits for a connection to another server.
pub(super) struct Moves(watch::Receiver<ServerId>);

impl Moves {
    /// Waits until the newest connection leads to another server than this one; returns what to say
    /// of it.
    pub(super) async fn other_than(&mut self, own: &ServerId) -> Option<String> {
        // The sender lives as long as the connections.
        let newest = self.0.wait_for(|newest| newest.differs(own)).await.ok()?;
        Some(format!("the address leads to another server now (run id {}, was {own})", *newest,))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(role: &str) -> Value {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        Value::Map(vec![(text("proto"), Value::Int(3)), (text("role"), text(role))])
    }

    #[test]
    fn a_replica_is_told_from_what_is_none() {
        assert!(is_primary(&answer("master")));
        assert!(!is_primary(&answer("replica")));
        assert!(!is_primary(&answer("slave")));
        assert!(is_primary(&Value::Nil));
    }

    #[test]
    fn only_known_servers_differ() {
        let id = |info: &str| ServerId(run_id(info));
        let (a, b) = (id("run_id:a\r\n"), id("# Server\r\nrun_id:b\r\n"));
        assert!(a.differs(&b) && !a.differs(&a.clone()));
        assert!(!a.differs(&id("tcp_port:1")) && !id("run_id:").differs(&b));
    }
}
