//! What an operator should know of the server: when connecting, and when a group is declared.

use redis::{Cmd, Value, cmd};
use tokio::time::Instant;

use super::registry::text;
use super::session::Session;
use crate::config::Endpoint;

/// Looks at the server's version and eviction policy; what it may not ask is said too.
pub(super) async fn look(session: &Session) {
    let mut warnings = Vec::new();
    let server = ask(session, cmd("INFO").arg("server")).await.unwrap_or_default();
    let name = field(&server, "valkey_version").map_or("redis", |_| "valkey");
    let version = field(&server, "valkey_version").or_else(|| field(&server, "redis_version"));
    let version = version.unwrap_or("unknown").to_owned();
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0_u32));
    let known = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version != "unknown" && name == "redis" && known < (6, 2) {
        warnings.push(format!("redis {version} is older than 6.2, the oldest supported version"));
    }
    match ask(session, cmd("INFO").arg("memory")).await {
        Some(info) => {
            if let Some(policy) = field(&info, "maxmemory_policy")
                && policy != "noeviction"
            {
                warnings.push(format!(
                    "maxmemory-policy is {policy}: under pressure the server deletes queues; \
                     set maxmemory-policy noeviction"
                ));
            }
        }
        None => warnings.push("eviction policy unknown: the user may not run INFO".into()),
    }
    let net = &session.config.net;
    let remote = session.config.endpoints.iter().find(|endpoint| !endpoint.is_local());
    if let (Some(endpoint @ Endpoint::Tcp { .. }), true, None) =
        (remote, net.password.is_some(), &net.tls)
    {
        warnings.push(format!("the password goes to {endpoint} in clear text; use rediss://"));
    }
    if net.tls.as_ref().is_some_and(|tls| tls.insecure_skip_verify) {
        warnings.push("insecure_skip_verify is on: anybody can pretend to be the server".into());
    }
    session.status.describe(format!("{name} {version}"), warnings);
}

/// Looks at the server's persistence, which only a bus with groups needs.
pub(super) async fn look_at_persistence(session: &Session) {
    let told = match ask(session, cmd("INFO").arg("persistence")).await {
        Some(info) => match (field(&info, "aof_enabled"), config(session, "save").await) {
            (Some("1"), _) => return,
            (_, Some(save)) if !save.is_empty() => {
                "appendonly is off: a crash loses what came after the last snapshot; set appendonly yes"
            }
            _ => "appendonly is off: a crash loses every queue; set appendonly yes",
        },
        None => "persistence unknown: the user may not run INFO",
    };
    session.status.warn(told);
}

async fn ask(session: &Session, command: &Cmd) -> Option<String> {
    let deadline = Instant::now() + session.config.net.op_timeout;
    match session.commands.send(command, deadline).await {
        Ok(Value::VerbatimString { text, .. }) => Some(text),
        Ok(value) => text(value),
        Err(_) => None,
    }
}

/// Returns a setting, where the user may ask for it.
async fn config(session: &Session, name: &str) -> Option<String> {
    let deadline = Instant::now() + session.config.net.op_timeout;
    match session.commands.send(cmd("CONFIG").arg("GET").arg(name), deadline).await {
        Ok(Value::Map(pairs)) => pairs.into_iter().next().and_then(|(_, value)| text(value)),
        Ok(Value::Array(parts)) => parts.into_iter().nth(1).and_then(text),
        _ => None,
    }
}

/// Returns a field of an INFO text.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
