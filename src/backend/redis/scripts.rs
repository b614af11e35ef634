//! The Lua scripts, assembled from their parts and called by their hash.

use std::sync::LazyLock;

use redis::{Cmd, cmd};

macro_rules! script {
    ($($part:literal),+) => {
        LazyLock::new(|| Script::new(concat!($(include_str!(concat!("lua/", $part, ".lua")), "\n"),+)))
    };
}

/// Applies a batch of transactions.
pub(super) static COMMIT: LazyLock<Script> =
    script!("base", "lib", "kept", "commit", "group", "records", "transact");
/// Publishes one plain message.
pub(super) static SINGLE: LazyLock<Script> = script!("base", "single");
/// Claims, or looks whether there is something to claim.
pub(super) static CLAIM: LazyLock<Script> = script!("base", "lib", "claim", "group", "claim_any");
/// Extends leases.
pub(super) static RENEW: LazyLock<Script> = script!("base", "lib", "group", "renew");
/// Reads records.
pub(super) static READ: LazyLock<Script> = script!("base", "lib", "records", "read");
/// Declares groups; what operators see and do.
pub(super) static ADMIN: LazyLock<Script> =
    script!("base", "lib", "kept", "group", "records", "admin");
/// Finds, cancels, promotes and reschedules the messages of an event.
pub(super) static MESSAGES: LazyLock<Script> = script!("base", "lib", "group", "messages");
/// Reads what is kept for replay.
pub(super) static REPLAY: LazyLock<Script> = script!("base", "lib", "kept", "replay");
/// Passes a wake-up on.
pub(super) static PASS: LazyLock<Script> = script!("base", "pass");

/// All of them, to be loaded when a connection is made.
pub(super) fn all() -> [&'static Script; 9] {
    [&COMMIT, &SINGLE, &CLAIM, &RENEW, &READ, &ADMIN, &MESSAGES, &REPLAY, &PASS]
}

/// One script.
#[derive(Debug)]
pub(super) struct Script {
    text: String,
    hash: String,
}

impl Script {
    fn new(text: &str) -> Self {
        let hash = redis::Script::new(text).get_hash().to_owned();
        Self { text: text.to_owned(), hash }
    }

    /// Returns the command that makes the server know it.
    pub(super) fn load(&self) -> Cmd {
        let mut command = cmd("SCRIPT");
        command.arg("LOAD").arg(self.text.as_bytes());
        command
    }

    /// Returns the command that runs it; arguments are to be added.
    pub(super) fn call(&self, prefix: &str) -> Cmd {
        let mut command = cmd("EVALSHA");
        command.arg(self.hash.as_bytes()).arg(1).arg(prefix.as_bytes());
        command
    }
}
