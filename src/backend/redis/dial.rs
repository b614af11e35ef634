//! Making connections: the address by topology, the stream, the login.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError, Value,
    cmd,
};

use super::identity::{self, ServerId};
use super::meter::Replies;
use crate::config::{Endpoint, RedisConfig, Secret, Topology};
use crate::error::{Error, Result};
use crate::guard::{Guarded, LoginGate, Room};
use crate::net::{self, Stream, Tls};
use crate::nudge::Nudge;

/// What gets what the server sends on its own.
pub(super) type Push = Arc<dyn AsyncPushSender>;

/// Sends one command and returns its answer; an error that the server answered is an error here.
pub(super) async fn ask(connection: &mut Connection, command: &Cmd) -> Result<Value, RedisError> {
    let sending = connection.wire.send_packed_command(command);
    connection.nudge.ask(0, sending).await?.extract_error()
}

/// A connection, and the task that writes what is sent on it.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) wire: MultiplexedConnection,
    nudge: Nudge,
}

/// A connection to the server that holds the bus, where that is, and which server it is.
#[derive(Clone)]
pub(super) struct Dialed {
    pub(super) connection: Connection,
    pub(super) endpoint: Endpoint,
    pub(super) server: ServerId,
}

/// Who to log in as.
#[derive(Debug, Clone, Copy)]
struct Login<'a> {
    username: Option<&'a str>,
    password: Option<&'a Secret>,
    db: i64,
}

/// Makes connections as the configuration says.
#[derive(Debug)]
pub(super) struct Dialer {
    config: RedisConfig,
    tls: Option<Tls>,
    /// How much the servers may answer.
    pub(super) room: Arc<Room>,
}

impl Dialer {
    /// Reads the TLS files.
    ///
    /// # Errors
    /// `Config` when one cannot be used.
    pub(super) fn new(config: RedisConfig) -> Result<Self> {
        let tls = config.net.tls.as_ref().map(Tls::new).transpose()?;
        let room = Room::new(config.largest());
        Ok(Self { config, tls, room })
    }

    /// Connects to the server that holds the bus, within the connect time-out.
    ///
    /// # Errors
    /// `Connect` with the address and what went wrong there; of several addresses, the last. A
    /// replica is refused: what it holds may be old, and it takes no writes.
    pub(super) async fn dial(&self, key: &str, push: Option<Push>) -> Result<Dialed> {
        let limit = self.config.net.connect_timeout;
        match tokio::time::timeout(limit, self.find(key, push)).await {
            Ok(found) => found,
            Err(_) => {
                let endpoint = self.config.endpoints.first();
                let endpoint = endpoint.map_or_else(String::new, ToString::to_string);
                Err(Error::Connect { endpoint, reason: format!("no answer within {limit:?}") })
            }
        }
    }

    async fn find(&self, key: &str, push: Option<Push>) -> Result<Dialed> {
        let mut problem = Error::Internal { reason: "no address".into() };
        for endpoint in &self.config.endpoints {
            let found = match &self.config.topology {
                Topology::Single => Ok(endpoint.clone()),
                Topology::Sentinel { service, username, password } => {
                    let login =
                        Login { username: username.as_deref(), password: password.as_ref(), db: 0 };
                    self.master(endpoint, service, login).await
                }
                Topology::Cluster => self.owner(endpoint, key).await,
            };
            let connected = match found {
                Ok(endpoint) => self.open_primary(endpoint, push.clone()).await,
                Err(error) => Err(error),
            };
            match connected {
                Ok(dialed) => return Ok(dialed),
                Err(error) => problem = error,
            }
        }
        Err(problem)
    }

    /// Connects to every server that takes writes.
    ///
    /// # Errors
    /// As for [`Dialer::dial`].
    pub(super) async fn primaries(&self) -> Result<Vec<(Connection, Endpoint)>> {
        let first = self.dial("", None).await?;
        if self.config.topology != Topology::Cluster {
            return Ok(vec![(first.connection, first.endpoint)]);
        }
        let (mut seed, endpoint) = (first.connection, first.endpoint);
        let ranges = ask(&mut seed, cmd("CLUSTER").arg("SLOTS")).await;
        let ranges = ranges.map_err(|error| refusal(&endpoint, &error))?;
        let mut found = Vec::new();
        for endpoint in owners(ranges, &endpoint) {
            let opening = self.open(&endpoint, self.login(), None);
            match tokio::time::timeout(self.config.net.connect_timeout, opening).await {
                Ok(opened) => found.push(opened?),
                Err(_) => return Err(net::failed(&endpoint, &"no answer in time")),
            }
        }
        Ok(found)
    }

    fn login(&self) -> Login<'_> {
        let net = &self.config.net;
        Login {
            username: net.username.as_deref(),
            password: net.password.as_ref(),
            db: self.config.db,
        }
    }

    /// Connects to a server of the bus and asks which one it is.
    async fn open_primary(&self, endpoint: Endpoint, push: Option<Push>) -> Result<Dialed> {
        let (mut connection, endpoint) = self.open(&endpoint, self.login(), push).await?;
        let server = identity::ask_server(&mut connection, &endpoint).await?;
        Ok(Dialed { connection, endpoint, server })
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
        login: Login<'_>,
        push: Option<Push>,
    ) -> Result<(Connection, Endpoint)> {
        let plain = net::connect(endpoint).await?;
        let stream = match &self.tls {
            Some(tls) => tls.wrap(endpoint, plain).await?,
            None => Stream::Plain(plain),
        };
        let gate = LoginGate::new(&self.room);
        let stream = Guarded::new(stream, Replies::default(), Arc::clone(&gate));
        let mut info = RedisConnectionInfo::default()
            .set_db(login.db)
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("eventbus", env!("CARGO_PKG_VERSION"));
        if let Some(username) = login.username {
            info = info.set_username(username);
        }
        if let Some(password) = login.password {
            info = info.set_password(password.reveal());
        }
        let mut config = AsyncConnectionConfig::new().set_response_timeout(None);
        if let Some(push) = push {
            config = config.set_push_sender(push);
        }
        let made = MultiplexedConnection::new_with_config(&info, stream, config).await;
        let (wire, driver) = made.map_err(|error| refusal(endpoint, &error))?;
        let (nudge, driver) = Nudge::around(|_| driver);
        tokio::spawn(driver);
        let mut connection = Connection { wire, nudge };
        // Also told by servers that accept connections before they can serve.
        ask(&mut connection, &cmd("PING")).await.map_err(|error| refusal(endpoint, &error))?;
        gate.open();
        Ok((connection, endpoint.clone()))
    }

    /// Asks a sentinel who is master.
    async fn master(
        &self,
        sentinel: &Endpoint,
        service: &str,
        login: Login<'_>,
    ) -> Result<Endpoint> {
        let (mut connection, _) = self.open(sentinel, login, None).await?;
        let mut question = cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
        let answer = ask(&mut connection, &question).await;
        let answer = answer.map_err(|error| refusal(sentinel, &error))?;
        let unknown = || net::failed(sentinel, &format!("it knows no master {service:?}"));
        let (host, port): (String, u16) = redis::from_redis_value(answer).map_err(|_| unknown())?;
        let endpoint = Endpoint::Tcp { host, port };
        let (mut connection, _) = self.open(&endpoint, self.login(), None).await?;
        let role = ask(&mut connection, &cmd("ROLE")).await;
        match role.map_err(|error| refusal(&endpoint, &error))? {
            Value::Array(parts) if is_text(parts.first(), b"master") => Ok(endpoint),
            _ => Err(net::failed(&endpoint, &"it is not master any more")),
        }
    }

    /// Asks a node of a cluster which node owns the slot of the bus.
    async fn owner(&self, seed: &Endpoint, key: &str) -> Result<Endpoint> {
        let (mut connection, _) = self.open(seed, self.login(), None).await?;
        let wrong = |error: RedisError| refusal(seed, &error);
        let slot = ask(&mut connection, cmd("CLUSTER").arg("KEYSLOT").arg(key)).await;
        let slot: i64 =
            redis::from_redis_value(slot.map_err(wrong)?).map_err(|e| net::failed(seed, &e))?;
        let ranges = ask(&mut connection, cmd("CLUSTER").arg("SLOTS")).await.map_err(wrong)?;
        owner_of(slot, ranges, seed)
            .ok_or_else(|| net::failed(seed, &format!("no node owns slot {slot}")))
    }
}

fn is_text(value: Option<&Value>, text: &[u8]) -> bool {
    matches!(value, Some(Value::BulkString(found)) if found == text)
}

/// Finds the master of a slot in the answer of `CLUSTER SLOTS`.
fn owner_of(slot: i64, ranges: Value, seed: &Endpoint) -> Option<Endpoint> {
    let Value::Array(ranges) = ranges else { return None };
    let range = ranges.into_iter().find(|range| holds(range, slot))?;
    master_of(&range, seed)
}

fn holds(range: &Value, slot: i64) -> bool {
    let Value::Array(parts) = range else { return false };
    matches!(parts.as_slice(), [Value::Int(from), Value::Int(to), ..] if (*from..=*to).contains(&slot))
}

/// Returns every master in the answer of `CLUSTER SLOTS`, once.
fn owners(ranges: Value, seed: &Endpoint) -> Vec<Endpoint> {
    let Value::Array(ranges) = ranges else { return Vec::new() };
    let mut found: Vec<Endpoint> = Vec::new();
    for endpoint in ranges.iter().filter_map(|range| master_of(range, seed)) {
        if !found.contains(&endpoint) {
            found.push(endpoint);
        }
    }
    found
}

/// Returns the master of a range of slots.
fn master_of(range: &Value, seed: &Endpoint) -> Option<Endpoint> {
    let Value::Array(parts) = range else { return None };
    let Some(Value::Array(node)) = parts.get(2) else { return None };
    let (Some(host), Some(Value::Int(port))) = (node.first(), node.get(1)) else { return None };
    let host = match host {
        Value::BulkString(host) if !host.is_empty() => String::from_utf8(host.clone()).ok()?,
        // A node that does not know its own name means the one that was asked.
        _ => match seed {
            Endpoint::Tcp { host, .. } => host.clone(),
            Endpoint::Unix { .. } => return None,
        },
    };
    Some(Endpoint::Tcp { host, port: u16::try_from(*port).ok()? })
}

/// Says what a server answered to an attempt to connect, without secrets.
pub(super) fn refusal(endpoint: &Endpoint, error: &RedisError) -> Error {
    let reason = match (error.code(), error.kind()) {
        (Some("WRONGPASS" | "NOAUTH"), _) | (_, ErrorKind::AuthenticationFailed) => {
            format!("authentication failed: {}; check username and password", says(error))
        }
        (Some("NOPERM"), _) => format!("{}; grant the rights of the ACL recipe", says(error)),
        _ => says(error),
    };
    Error::Connect { endpoint: endpoint.to_string(), reason }
}

/// Waits until a new connection is ready for use.
pub(super) async fn within(
    limit: Duration,
    endpoint: &Endpoint,
    ready: impl Future<Output = Result<(), RedisError>>,
) -> Result<()> {
    match tokio::time::timeout(limit, ready).await {
        Ok(done) => done.map_err(|error| refusal(endpoint, &error)),
        Err(_) => Err(net::failed(endpoint, &format!("no answer within {limit:?}"))),
    }
}

/// Returns what the server or the network said.
pub(super) fn says(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}

/// Returns the next pause before another attempt: at once, then full jitter up to 1, 2, 4, … 30 s,
/// but below 5 s in the first minute.
pub(super) fn pause(attempt: u32, since: Duration, fraction: f64) -> Duration {
    if attempt == 0 {
        return Duration::ZERO;
    }
    let limit = if since < Duration::from_secs(60) { 4.0 } else { 30.0 };
    let bound = f64::from(1_u32 << attempt.min(5)).min(limit) / 2.0;
    Duration::from_secs_f64((bound * fraction).max(0.05))
}
