//! Loading the library of functions, for operators.

use redis::{RedisError, Value, cmd};

use super::dial::{Connection, Dialer, ask, refusal, within};
use super::registry::text;
use super::scripts::{self, LIBRARY};
use crate::config::{Endpoint, RedisConfig};
use crate::error::{Error, Result};
use crate::net;

/// What became of the library on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loaded {
    /// It was there already.
    Unchanged,
    /// It was not there.
    New,
    /// One of the same name with another text was there.
    Replaced,
}

/// What loading the library did, or would do.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The name of the library.
    pub library: &'static str,
    /// Its text, as `FUNCTION LOAD` takes it.
    pub text: &'static str,
    /// What became of it on every primary, by its address.
    pub servers: Vec<(String, Loaded)>,
}

/// Loads the library into every primary; without `apply` nothing changes.
///
/// # Errors
/// `Connect` when a server cannot be reached or refuses, `Config` when it has no functions.
pub async fn setup(config: &RedisConfig, apply: bool) -> Result<Setup> {
    config.validate()?;
    let dialer = Dialer::new(config.clone())?;
    let mut servers = Vec::new();
    for (mut connection, endpoint) in dialer.primaries().await? {
        let limit = config.net.op_timeout;
        let mut loaded = Ok(Loaded::Unchanged);
        let loading = async {
            loaded = load(&mut connection, apply).await;
            Ok(())
        };
        within(limit, &endpoint, loading).await?;
        servers.push((endpoint.to_string(), loaded.map_err(|error| unable(&endpoint, &error))?));
    }
    Ok(Setup { library: LIBRARY, text: scripts::library(), servers })
}

async fn load(connection: &mut Connection, apply: bool) -> Result<Loaded, RedisError> {
    let mut question = cmd("FUNCTION");
    question.arg("LIST").arg("LIBRARYNAME").arg(LIBRARY).arg("WITHCODE");
    let loaded = match code(ask(connection, &question).await?) {
        Some(code) if code == scripts::library() => return Ok(Loaded::Unchanged),
        Some(_) => Loaded::Replaced,
        None => Loaded::New,
    };
    if apply {
        let mut command = cmd("FUNCTION");
        command.arg("LOAD").arg("REPLACE").arg(scripts::library());
        ask(connection, &command).await?;
    }
    Ok(loaded)
}

/// Returns the text of the only library of an answer to `FUNCTION LIST`.
fn code(answer: Value) -> Option<String> {
    let Value::Array(libraries) = answer else { return None };
    let Value::Map(fields) = libraries.into_iter().next()? else { return None };
    let is_code = |key: &Value| match key {
        Value::BulkString(key) => key == b"library_code",
        Value::SimpleString(key) => key == "library_code",
        _ => false,
    };
    fields.into_iter().find(|(key, _)| is_code(key)).and_then(|(_, code)| text(code))
}

fn unable(endpoint: &Endpoint, error: &RedisError) -> Error {
    match (error.code(), error.detail()) {
        (Some("ERR"), Some(said)) if said.starts_with("unknown command") => {
            net::failed(endpoint, &"it has no functions: that needs Redis 7; use scripts=eval")
        }
        (Some("NOPERM"), _) => net::failed(
            endpoint,
            &"the user may not load functions: grant +function|load and +function|list",
        ),
        _ => refusal(endpoint, error),
    }
}
