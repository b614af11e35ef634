//! Every failure of the core, its message, and what a caller can do about it.

use std::borrow::Cow;
use std::time::Duration;

/// The result of a core operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Messages say what failed, the value, and the limit or remedy.
///
/// Each variant maps to one Python exception class in `src/python/errors.rs`.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be used; every problem found is listed.
    #[error("invalid configuration: {}", problems.join("; "))]
    Config {
        /// One line per problem: the key, the value, and what would be valid.
        problems: Vec<String>,
    },
    /// A topic, pattern or name breaks a rule.
    #[error("invalid {what} {name:?}: {rule}")]
    Topic {
        /// `topic`, `pattern` or `group`.
        what: &'static str,
        /// The offending text, shortened to 80 characters.
        name: String,
        /// The rule it breaks, with the limit.
        rule: String,
    },
    /// The server cannot be reached or refused the connection; worth retrying.
    #[error("cannot reach {endpoint}: {reason}")]
    Connect {
        /// Host and port, never credentials.
        endpoint: String,
        /// What the network or the server said.
        reason: String,
    },
    /// The server was reached and would not do it; nothing was changed. Worth retrying once what it
    /// complains of is mended.
    #[error("{endpoint} refused: {reason}; {remedy}")]
    Refused {
        /// Host and port, never credentials.
        endpoint: String,
        /// What the server said.
        reason: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The server does not let this user do it; nothing was changed.
    #[error("{endpoint} denied it: {reason}; {remedy}")]
    Denied {
        /// Host and port, never credentials.
        endpoint: String,
        /// What the server said.
        reason: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The caller's transaction collided with another; it is over, and nothing of it happens.
    #[error("the transaction collided with another: {reason}; roll it back and run it again")]
    Serialization {
        /// What the server said.
        reason: String,
        /// Its code: `40001` or `40P01`.
        code: String,
    },
    /// No answer in time; the outcome may be unknown.
    #[error("{operation} got no answer within {after:?}{}", last(trouble))]
    Timeout {
        /// The operation that was waited for.
        operation: &'static str,
        /// How long it was waited for.
        after: Duration,
        /// Whether the operation may have taken effect.
        outcome_unknown: bool,
        /// What the last attempt to connect meanwhile ended with; empty when there was none.
        trouble: String,
    },
    /// The bus was never connected.
    #[error("{bus} not connected")]
    NotConnected {
        /// The bus class or scheme.
        bus: &'static str,
    },
    /// The bus, subscription or consumer was closed.
    #[error("{what} is closed")]
    Closed {
        /// What was closed.
        what: &'static str,
    },
    /// A value cannot be encoded.
    #[error("{reason} (at {path})")]
    Encode {
        /// Where in the value, as `$.a[3]`.
        path: String,
        /// What stands there and what would be accepted.
        reason: String,
    },
    /// Bytes cannot be decoded.
    #[error("cannot decode {what}: {reason}")]
    Decode {
        /// What was being decoded: `envelope`, `payload`, `JSON message`.
        what: &'static str,
        /// What is wrong, with the byte offset where known.
        reason: String,
    },
    /// The envelope has a version this build does not know; left for newer workers.
    #[error("envelope version {version} is not supported; this build reads up to {supported}")]
    UnknownVersion {
        /// The version found.
        version: u64,
        /// The newest version this build reads.
        supported: u64,
    },
    /// A size or nesting limit is exceeded; checked before anything is allocated.
    #[error("{what} is {size}, limit {limit}; {remedy}")]
    TooLarge {
        /// What was measured, with its unit: `message bytes`, `nesting depth`, `elements`.
        what: &'static str,
        /// The measured figure.
        size: u64,
        /// The limit.
        limit: u64,
        /// How to raise it, or what to do instead.
        remedy: &'static str,
    },
    /// A broadcast does not fit into a notification, and may not go by table; nothing was sent.
    #[error(
        "payload string too long: event on topic '{}' is {size} bytes, limit {limit}; send \
         less, or use large_payloads='table' where every receiver is an eventbus",
        shown(topic)
    )]
    TooLong {
        /// The topic.
        topic: String,
        /// The size of the notification in bytes.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A bounded queue or buffer is full; nothing was stored.
    #[error("{} is full: limit {limit} messages; consume, purge or raise max_length", shown(queue))]
    QueueFull {
        /// The group or buffer.
        queue: String,
        /// Its limit in messages.
        limit: u64,
    },
    /// The fencing token is no longer current: the delivery was taken back. Nothing was changed.
    #[error(
        "lease lost on {:?}: token {token} is no longer current; the delivery was taken back",
        shown(group)
    )]
    LeaseLost {
        /// The group of the delivery.
        group: String,
        /// The stale token.
        token: u64,
    },
    /// A record precondition failed. Nothing was changed.
    #[error(
        "record {:?} is at version {actual}, expected {expected}; read it again and retry",
        shown(key)
    )]
    VersionConflict {
        /// The record's key.
        key: String,
        /// The version the caller expected; 0 = must not exist.
        expected: u64,
        /// The version found; 0 = absent.
        actual: u64,
    },
    /// The backend cannot do this; see the capability table.
    #[error("{operation} is not supported by the {backend} backend: {remedy}")]
    Unsupported {
        /// The operation asked for.
        operation: &'static str,
        /// The backend's name.
        backend: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A named thing does not exist.
    #[error("no {what} {:?}", shown(name))]
    NotFound {
        /// `group`, `message`, `dead letter`.
        what: &'static str,
        /// Its name or id.
        name: String,
    },
    /// An argument is out of range.
    #[error("invalid {what} {}: {rule}", shown(value))]
    InvalidArgument {
        /// The argument's name.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would be valid.
        rule: &'static str,
    },
    /// The object was made before a fork and is used in the child.
    #[error(
        "cannot use this bus across a fork: made in process {made_in}, used in {used_in}; make a new bus in the child"
    )]
    Forked {
        /// The process that made the object.
        made_in: u32,
        /// The current process.
        used_in: u32,
    },
    /// A bug or a caught panic; please report it.
    #[error("internal error: {reason}")]
    Internal {
        /// What is known.
        reason: String,
    },
}

/// Most characters of a name that a message shows.
const SHOWN: usize = 200;

/// Returns a name as messages show it: one that is too long is cut, and its length told.
#[must_use]
pub fn shown(name: &str) -> Cow<'_, str> {
    match name.char_indices().nth(SHOWN) {
        None => Cow::Borrowed(name),
        Some((end, _)) => {
            let start = name.get(..end).unwrap_or(name);
            Cow::Owned(format!("{start}… ({} characters)", name.chars().count()))
        }
    }
}

/// Returns what is added to a message about the last trouble of a connection.
fn last(trouble: &str) -> String {
    if trouble.is_empty() { String::new() } else { format!("; last: {trouble}") }
}

impl Error {
    /// Whether trying the same call again can succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::Refused { .. }
                | Self::Serialization { .. }
                | Self::Timeout { .. }
                | Self::QueueFull { .. }
        )
    }

    /// Whether the operation may have taken effect although it failed.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Timeout { outcome_unknown: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_and_its_length_told() {
        assert_eq!(shown(&"é".repeat(200)), "é".repeat(200));
        let error = Error::NotFound { what: "group", name: "é".repeat(10_000) };
        let text = error.to_string();
        assert!(text.chars().count() < 250, "{text}");
        assert!(text.contains("(10000 characters)"), "{text}");
    }
}
