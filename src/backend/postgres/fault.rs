//! What a failure of the server means: try again, on which connection, or give up with which error.

use tokio_postgres::error::SqlState;

use crate::error::Error;

/// What to do when a server takes no writes.
const NO_WRITES: &str = "make it writable, or let the address lead to the primary";
/// What to do when the schema, or something in it, is gone.
pub(super) const NO_SCHEMA: &str =
    "the schema of the bus is gone or damaged: run `eventbus migrate`";

/// What to do about a failed statement.
#[derive(Debug)]
pub(super) enum Fault {
    /// The connection is gone or the server goes down: again on a new one.
    Lost(String),
    /// The server undid it for the sake of others: again.
    Again(String),
    /// The server takes no writes now: again on a new connection, which may lead elsewhere. With the
    /// error for who has no more time.
    ReadOnly(Error),
    /// The registry has changed: load it and again.
    Stale,
    /// A group is full: its limit.
    Full(u64),
    /// The named group does not exist.
    NoGroup,
    /// Trying again does not help.
    Final(Error),
}

/// Returns an error's text with its cause, without the words around it.
pub(super) fn text(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} ({})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

impl Fault {
    /// Sorts a failure; `endpoint` names the server in errors.
    pub(super) fn of(error: &tokio_postgres::Error, endpoint: &str) -> Self {
        let said = text(error);
        let Some(db) = error.as_db_error() else {
            // Without an answer of the server it is the connection, or a value that cannot be sent.
            return if error.is_closed() || has_io_cause(error) {
                Self::Lost(said)
            } else {
                Self::Final(Error::Internal { reason: said })
            };
        };
        let code = db.code();
        match code.code() {
            "EB001" => return Self::Stale,
            "EB004" => {
                let limit = db.detail().and_then(|detail| detail.parse().ok());
                return Self::Full(limit.unwrap_or(0));
            }
            "EB005" => return Self::NoGroup,
            // Another connection serves the session than the one that prepared it, or the prepared
            // call was made again with another answer.
            "26000" => return Self::Lost(said),
            "0A000" if said.contains("cached plan") => return Self::Lost(said),
            "25006" => {
                let endpoint = endpoint.to_owned();
                return Self::ReadOnly(Error::Refused {
                    endpoint,
                    reason: said,
                    remedy: NO_WRITES,
                });
            }
            // The server ended a transaction, and the session with it, for the time it took.
            "25P03" | "25P04" => return Self::Lost(said),
            "55P03" => return Self::Again(said),
            "3F000" | "42883" | "42P01" => {
                let endpoint = endpoint.to_owned();
                return Self::Final(Error::Refused { endpoint, reason: said, remedy: NO_SCHEMA });
            }
            _ => {}
        }
        if matches!(*code, SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED) {
            return Self::Again(said);
        }
        let class = code.code().get(..2).unwrap_or_default();
        match class {
            "08" => Self::Lost(said),
            // 57014 is a time-out or a cancel of this one statement, the rest the end of the session.
            "57" if *code != SqlState::QUERY_CANCELED => Self::Lost(said),
            "57" => Self::Again(said),
            "53" if *code == SqlState::TOO_MANY_CONNECTIONS => Self::Lost(said),
            // A full disk or memory: worth another try by the caller, later.
            "53" => Self::Final(Error::Connect { endpoint: endpoint.to_owned(), reason: said }),
            "3F" | "42" => {
                let problem = format!("the schema cannot be used: {said}");
                Self::Final(Error::Config { problems: vec![problem] })
            }
            _ => Self::Final(Error::Internal { reason: said }),
        }
    }
}

fn has_io_cause(error: &tokio_postgres::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if inner.is::<std::io::Error>() {
            return true;
        }
        cause = inner.source();
    }
    false
}
