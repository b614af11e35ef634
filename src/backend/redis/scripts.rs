//! The Lua scripts, assembled from their parts: called by their hash, or as functions of a library.

use std::fmt::Write;
use std::sync::LazyLock;

use redis::{Cmd, cmd};

/// Names the library of functions: processes of two versions run side by side, each with its own.
/// Raise it whenever a script changes after a release.
pub(super) const LIBRARY: &str = "eventbus_1";
/// What a function is called by that a full server shall run.
const FULL: &str = "_full";

macro_rules! script {
    ($name:literal: $($part:literal),+) => {
        LazyLock::new(|| Script::new(
            $name,
            concat!($(include_str!(concat!("lua/", $part, ".lua")), "\n"),+),
        ))
    };
}

/// Applies a batch of transactions.
pub(super) static COMMIT: LazyLock<Script> =
    script!("commit": "base", "lib", "kept", "commit", "group", "records", "transact");
/// Publishes one plain message.
pub(super) static SINGLE: LazyLock<Script> = script!("single": "base", "single");
/// Claims, or looks whether there is something to claim.
pub(super) static CLAIM: LazyLock<Script> =
    script!("claim": "base", "lib", "claim", "group", "claim_any");
/// Extends leases.
pub(super) static RENEW: LazyLock<Script> = script!("renew": "base", "lib", "group", "renew");
/// Reads records.
pub(super) static READ: LazyLock<Script> = script!("read": "base", "lib", "records", "read");
/// Declares groups, and tells what is declared.
pub(super) static DECLARE: LazyLock<Script> =
    script!("declare": "base", "lib", "kept", "group", "declare");
/// What operators see and do.
pub(super) static ADMIN: LazyLock<Script> =
    script!("admin": "base", "lib", "kept", "group", "records", "admin");
/// Finds, cancels, promotes and reschedules the messages of an event.
pub(super) static MESSAGES: LazyLock<Script> =
    script!("messages": "base", "lib", "group", "messages");
/// Reads what is kept for replay.
pub(super) static REPLAY: LazyLock<Script> = script!("replay": "base", "lib", "kept", "replay");
/// Passes a wake-up on.
pub(super) static PASS: LazyLock<Script> = script!("pass": "base", "pass");

/// All of them.
pub(super) fn all() -> [&'static Script; 10] {
    [&COMMIT, &SINGLE, &CLAIM, &RENEW, &READ, &DECLARE, &ADMIN, &MESSAGES, &REPLAY, &PASS]
}

/// How scripts are called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Calling {
    /// By their hash, with the right to load and run any script.
    #[default]
    Scripts,
    /// As functions of the library that an operator has loaded.
    Functions,
}

/// One script.
#[derive(Debug)]
pub(super) struct Script {
    name: &'static str,
    text: &'static str,
    hash: String,
    function: String,
}

impl Script {
    fn new(name: &'static str, text: &'static str) -> Self {
        let hash = redis::Script::new(text).get_hash().to_owned();
        Self { name, text, hash, function: format!("{LIBRARY}_{name}") }
    }

    fn named(&self, calling: Calling) -> (&'static str, &[u8]) {
        match calling {
            Calling::Scripts => ("EVALSHA", self.hash.as_bytes()),
            Calling::Functions => ("FCALL", self.function.as_bytes()),
        }
    }

    /// Returns the command that makes the server know it.
    pub(super) fn load(&self) -> Cmd {
        let mut command = cmd("SCRIPT");
        command.arg("LOAD").arg(self.text.as_bytes());
        command
    }

    /// Returns the command that runs it; arguments are to be added.
    pub(super) fn call(&self, calling: Calling, prefix: &str) -> Cmd {
        let (verb, name) = self.named(calling);
        let mut command = cmd(verb);
        command.arg(name).arg(1).arg(prefix.as_bytes());
        command
    }
}

/// The library, as it is loaded, and what tells it from one of the same name with another text.
static BUILT: LazyLock<(String, String)> = LazyLock::new(|| {
    let head = include_str!("lua/library.lua").replace("LIBRARY", LIBRARY);
    let (before, after) = head.split_once("-- FUNCTIONS\n").unwrap_or((&head, ""));
    let mut text = before.to_owned();
    for script in all() {
        // Writing to a string cannot fail.
        let (name, body) = (script.name, script.text);
        let _ = write!(text, "register('{name}', function(KEYS, ARGV, redis)\n{body}\nend)\n");
    }
    let digest = redis::Script::new(&format!("{text}{after}")).get_hash().to_owned();
    (format!("{text}{}", after.replace("DIGEST", &digest)), digest)
});

/// Returns the library of functions, as `FUNCTION LOAD` takes it.
pub(super) fn library() -> &'static str {
    &BUILT.0
}

/// Returns the command that asks which library is loaded: it answers `digest`.
pub(super) fn ask_library() -> Cmd {
    let mut command = cmd("FCALL");
    command.arg(format!("{LIBRARY}_about")).arg(0);
    command
}

/// Returns what tells this library from one of the same name with another text.
pub(super) fn digest() -> &'static str {
    &BUILT.1
}

fn nth(command: &Cmd, at: usize) -> Option<&[u8]> {
    match command.args_iter().nth(at) {
        Some(redis::Arg::Simple(bytes)) => Some(bytes),
        _ => None,
    }
}

/// Returns a command that calls a script the other way, when it was made before that changed.
pub(super) fn recast(command: &Cmd, calling: Calling) -> Option<Cmd> {
    let found = match (nth(command, 0)?, calling) {
        (b"EVALSHA", Calling::Functions) | (b"FCALL", Calling::Scripts) => script_of(command)?,
        _ => return None,
    };
    let (verb, name) = found.named(calling);
    let mut other = cmd(verb);
    other.arg(name);
    Some(with_the_rest(other, command))
}

/// Returns the call of a function that a full server runs: it refuses what needs more memory itself.
pub(super) fn when_full(command: &Cmd) -> Option<Cmd> {
    if nth(command, 0)? != b"FCALL" {
        return None;
    }
    let script = script_of(command)?;
    let mut other = cmd("FCALL");
    other.arg(format!("{}{FULL}", script.function));
    Some(with_the_rest(other, command))
}

fn script_of(command: &Cmd) -> Option<&'static Script> {
    let name = nth(command, 1)?;
    let is_it =
        |script: &&Script| script.hash.as_bytes() == name || script.function.as_bytes() == name;
    all().into_iter().find(is_it)
}

fn with_the_rest(mut to: Cmd, from: &Cmd) -> Cmd {
    for argument in from.args_iter().skip(2) {
        if let redis::Arg::Simple(bytes) = argument {
            to.arg(bytes);
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(command: &Cmd) -> Vec<Vec<u8>> {
        (0..).map_while(|at| nth(command, at).map(<[u8]>::to_vec)).collect()
    }

    #[test]
    fn a_call_is_made_again_the_other_way_with_the_same_arguments() {
        let mut by_hash = COMMIT.call(Calling::Scripts, "p");
        let mut function = COMMIT.call(Calling::Functions, "p");
        for command in [&mut by_hash, &mut function] {
            command.arg("a").arg(&b"\r\n\0"[..]);
        }
        assert_eq!(
            recast(&by_hash, Calling::Functions).map(|found| arguments(&found)),
            Some(arguments(&function))
        );
        assert_eq!(
            recast(&function, Calling::Scripts).map(|found| arguments(&found)),
            Some(arguments(&by_hash))
        );
        assert!(recast(&by_hash, Calling::Scripts).is_none());
        assert!(recast(&cmd("PING"), Calling::Functions).is_none());
        let full = when_full(&function).map(|found| arguments(&found)[1].clone());
        assert_eq!(full.as_deref(), Some(&b"eventbus_1_commit_full"[..]));
        assert!(when_full(&by_hash).is_none());
    }

    #[test]
    fn the_library_names_its_functions_and_its_digest() {
        assert!(library().starts_with("#!lua name=eventbus_1\n"));
        assert_eq!(digest().len(), 40);
        assert!(!library().contains("DIGEST") && !library().contains("LIBRARY"));
    }
}
