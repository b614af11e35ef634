//! Making a server ready to run the scripts: as functions that were loaded, or by loading them.

use redis::RedisError;

use super::dial::{Connection, ask, says};
use super::link::is_denied;
use super::registry::text;
use super::scripts::{self, Calling, LIBRARY};
use crate::config::Scripts;

/// What an operator does about a library that is missing.
pub(super) const REMEDY: &str = "run `eventbus redis-setup` as a user who may load functions";

/// Why a server cannot run the scripts.
#[derive(Debug)]
pub(super) enum Unready {
    /// It said so, or did not answer.
    Refused(RedisError),
    /// The library of functions is not what is needed.
    Library(String),
}

/// Finds out how a server runs the scripts, and loads them where they are called by their hash.
pub(super) async fn prepare(
    connection: &mut Connection,
    wanted: Scripts,
) -> Result<Calling, Unready> {
    let mut missing = None;
    if wanted != Scripts::Eval {
        match library(connection).await? {
            None => return Ok(Calling::Functions),
            Some(problem) if wanted == Scripts::Functions => {
                return Err(Unready::Library(problem));
            }
            problem => missing = problem,
        }
    }
    for script in scripts::all() {
        if let Err(error) = ask(connection, &script.load()).await {
            return Err(match missing {
                Some(problem) if is_denied(&says(&error)) => {
                    Unready::Library(format!("{problem}, and the user may not load scripts"))
                }
                _ => Unready::Refused(error),
            });
        }
    }
    Ok(Calling::Scripts)
}

/// Returns what is wrong with the library of a server; nothing when it is what is needed.
async fn library(connection: &mut Connection) -> Result<Option<String>, Unready> {
    let problem = match ask(connection, &scripts::ask_library()).await {
        Ok(answer) => {
            if text(answer).as_deref() == Some(scripts::digest()) {
                return Ok(None);
            }
            "is there with another text".to_owned()
        }
        Err(error) if is_unknown(&error) => "is not loaded".to_owned(),
        Err(error) if is_denied(&says(&error)) => {
            format!("cannot be called ({})", says(&error))
        }
        Err(error) if error.code() == Some("ERR") => {
            format!("cannot be called ({}): it needs Redis 7", says(&error))
        }
        Err(error) => return Err(Unready::Refused(error)),
    };
    Ok(Some(format!("the function library {LIBRARY} {problem}")))
}

/// Whether a server does not know the function that was called.
pub(super) fn is_unknown(error: &RedisError) -> bool {
    error.code() == Some("ERR") && error.detail().is_some_and(|said| said == "Function not found")
}
