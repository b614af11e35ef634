//! Single commands and channels of a server, for wires that other systems have made.

use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use parking_lot::{Mutex, RwLock};
use redis::aio::SendError;
use redis::{Cmd, PushInfo, PushKind, Value, cmd};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::dial::{Dialed, Dialer, Push, within};
use super::hole::Hole;
use super::link::{self, Link, Status, Trouble};
use super::listen::{Needed, Subscriptions};
use crate::backend::feeds::Feeds;
use crate::backend::{Gap, GapCause, ListenRequest, Listener, Overflow};
use crate::config::RedisConfig;
use crate::error::{Error, Result};
use crate::shutdown::Tasks;
use crate::topic::Binding;

/// What a server answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Nothing.
    Nil,
    /// A number.
    Int(i64),
    /// A number with a fraction.
    Double(f64),
    /// Bytes; short confirmations like `OK` too.
    Bytes(Vec<u8>),
    /// Several; maps alternate key and value.
    List(Vec<Reply>),
}

impl From<Value> for Reply {
    fn from(value: Value) -> Self {
        match value {
            Value::Int(number) => Self::Int(number),
            Value::Double(number) => Self::Double(number),
            Value::Boolean(flag) => Self::Int(i64::from(flag)),
            Value::BulkString(bytes) => Self::Bytes(bytes),
            Value::SimpleString(text) => Self::Bytes(text.into_bytes()),
            Value::VerbatimString { text, .. } => Self::Bytes(text.into_bytes()),
            Value::Okay => Self::Bytes(b"OK".to_vec()),
            Value::Array(values) | Value::Set(values) => {
                Self::List(values.into_iter().map(Self::from).collect())
            }
            Value::Map(pairs) => {
                let both = |(key, value)| [Self::from(key), Self::from(value)];
                Self::List(pairs.into_iter().flat_map(both).collect())
            }
            _ => Self::Nil,
        }
    }
}

/// Which messages of a channel are wanted, by the first entry of the `MessagePack` map that they
/// are. What is no such map is wanted: the caller tells what is wrong with it.
#[derive(Debug)]
struct Filter {
    keys: AHashSet<String>,
    values: AHashSet<String>,
}

impl Filter {
    fn wants(&self, message: &[u8]) -> bool {
        let value = first_entry(message).filter(|(key, _)| self.keys.contains(*key));
        value.is_none_or(|(_, value)| self.values.contains(value))
    }
}

pub(super) fn first_entry(message: &[u8]) -> Option<(&str, &str)> {
    let mut rest = message;
    rmp::decode::read_map_len(&mut rest).ok().filter(|entries| *entries > 0)?;
    let (key, rest) = rmp::decode::read_str_from_slice(rest).ok()?;
    let (value, _) = rmp::decode::read_str_from_slice(rest).ok()?;
    Some((key, value))
}

type Filters = Arc<RwLock<AHashMap<String, Filter>>>;

/// What is alive between connect and close.
#[derive(Debug)]
struct Open {
    commands: Arc<Link>,
    pushes: Arc<Link>,
    feeds: Arc<Feeds>,
    subscriptions: Arc<Subscriptions>,
    tasks: Tasks,
}

/// A client for single commands, with the care for connections that a bus gets.
#[derive(Debug)]
pub struct RedisClient {
    config: RedisConfig,
    dialer: Arc<Dialer>,
    open: Mutex<Option<Arc<Open>>>,
    connecting: tokio::sync::Mutex<()>,
    filters: Filters,
}

impl RedisClient {
    /// Creates a client that is not connected yet.
    ///
    /// # Errors
    /// `Config` listing every problem.
    pub fn new(config: RedisConfig) -> Result<Self> {
        config.validate()?;
        let dialer = Arc::new(Dialer::new(config.clone())?);
        Ok(Self {
            config,
            dialer,
            open: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            filters: Filters::default(),
        })
    }

    fn opened(&self) -> Result<Arc<Open>> {
        self.open.lock().clone().ok_or(Error::NotConnected { bus: "redis client" })
    }

    /// Connects; idempotent.
    ///
    /// # Errors
    /// `Connect` when the server cannot be reached or refuses.
    pub async fn connect(&self) -> Result<()> {
        let _turn = self.connecting.lock().await;
        if self.open.lock().is_some() {
            return Ok(());
        }
        let status = Arc::new(Status::new(Arc::clone(&self.dialer.room)));
        let (unneeded, over) = mpsc::unbounded_channel();
        let open = Arc::new(Open {
            commands: Arc::new(Link::new("command connection", Arc::clone(&status))),
            pushes: Arc::new(Link::new("pub/sub connection", status)),
            feeds: Arc::default(),
            subscriptions: Arc::new(Subscriptions::new(unneeded)),
            tasks: Tasks::new(Handle::current()),
        });
        let (commands, pushes) = (Arc::clone(&open.commands), Arc::clone(&open.pushes));
        commands.put(self.dialer.dial("", None).await?);
        let dialer = Arc::clone(&self.dialer);
        let every = self.config.net.heartbeat;
        open.tasks.spawn(link::keep(
            commands,
            every,
            || {},
            move || {
                let dialer = Arc::clone(&dialer);
                async move { dialer.dial("", None).await }
            },
            || {},
        ));
        let listening = Listening {
            dialer: Arc::clone(&self.dialer),
            pushes: Arc::clone(&pushes),
            feeds: Arc::clone(&open.feeds),
            subscriptions: Arc::clone(&open.subscriptions),
            filters: Arc::clone(&self.filters),
            hole: Arc::default(),
            limit: self.config.net.connect_timeout,
        };
        pushes.put(listening.connection().await?);
        let hole = Arc::clone(&listening.hole);
        let listening = Arc::new(listening);
        let make = move || {
            let listening = Arc::clone(&listening);
            async move { listening.connection().await }
        };
        open.tasks.spawn(link::keep(Arc::clone(&pushes), every, move || hole.begin(), make, || {}));
        let (subscriptions, limit) = (Arc::clone(&open.subscriptions), self.config.net.op_timeout);
        open.tasks.spawn(async move { subscriptions.end_unneeded(&pushes, over, limit).await });
        *self.open.lock() = Some(open);
        Ok(())
    }

    /// Sends a command once and returns its answer. It waits for a connection until the operation's
    /// time is over; a command that was sent is not sent again.
    ///
    /// # Errors
    /// `Connect` when it was never sent, `Timeout` with an unknown outcome when the answer is
    /// missing, `Refused` or `Denied` with what the server said.
    pub async fn command(&self, arguments: &[Vec<u8>]) -> Result<Reply> {
        let Some((name, rest)) = arguments.split_first() else {
            let rule = "must name a command";
            return Err(Error::InvalidArgument { what: "command", value: "()".into(), rule });
        };
        let mut command = Cmd::new();
        command.arg(name);
        for argument in rest {
            command.arg(argument);
        }
        self.send(&command).await
    }

    /// Runs a script, by its hash after the first time.
    ///
    /// # Errors
    /// As for [`RedisClient::command`].
    pub async fn script(
        &self,
        text: &str,
        keys: &[Vec<u8>],
        arguments: &[Vec<u8>],
    ) -> Result<Reply> {
        let script = redis::Script::new(text);
        let mut command = cmd("EVALSHA");
        command.arg(script.get_hash()).arg(keys.len());
        for argument in keys.iter().chain(arguments) {
            command.arg(argument);
        }
        let open = self.opened()?;
        let deadline = Instant::now() + self.config.net.op_timeout;
        match open.commands.send(&command, deadline).await {
            Err(Trouble::NoScript) => {
                self.send(cmd("SCRIPT").arg("LOAD").arg(text)).await?;
                self.send(&command).await
            }
            Ok(answer) => Ok(answer.into()),
            Err(trouble) => Err(self.failed(&open, trouble)),
        }
    }

    async fn send(&self, command: &Cmd) -> Result<Reply> {
        let open = self.opened()?;
        let deadline = Instant::now() + self.config.net.op_timeout;
        match open.commands.send(command, deadline).await {
            Ok(answer) => Ok(answer.into()),
            Err(trouble) => Err(self.failed(&open, trouble)),
        }
    }

    fn failed(&self, open: &Open, trouble: Trouble) -> Error {
        open.commands.failed("command", self.config.net.op_timeout, trouble)
    }

    /// Subscribes to a channel; what is published after this returned is received, up to `ring`
    /// messages behind. A frame's topic is the channel.
    ///
    /// # Errors
    /// As for [`RedisClient::command`].
    pub async fn subscribe(&self, channel: &str, ring: usize) -> Result<Box<dyn Listener>> {
        let open = self.opened()?;
        let request = ListenRequest {
            bindings: vec![Binding::Topic(channel.into())],
            buffer: ring.max(1),
            overflow: Overflow::DropOldest,
            since: None,
        };
        let kept: Arc<Mutex<Option<Needed>>> = Arc::default();
        let listener = open.feeds.add(request, Box::new(Arc::clone(&kept)));
        let deadline = Instant::now() + self.config.net.op_timeout;
        let names = vec![(channel.as_bytes().to_vec(), false)];
        let added = open.subscriptions.add(&open.pushes, names, deadline).await;
        *kept.lock() = Some(added.map_err(|trouble| self.failed(&open, trouble))?);
        Ok(Box::new(listener))
    }

    /// Drops from now on what comes on a channel and is a `MessagePack` map whose first key is one
    /// of `keys` with a text that is none of `values`.
    pub fn keep(&self, channel: &str, keys: Vec<String>, values: Vec<String>) {
        let (keys, values) = (keys.into_iter().collect(), values.into_iter().collect());
        self.filters.write().insert(channel.to_owned(), Filter { keys, values });
    }

    /// Disconnects; subscriptions end. Idempotent.
    pub async fn close(&self) {
        let open = self.open.lock().take();
        if let Some(open) = open {
            open.feeds.close();
            open.tasks.stop(Duration::from_secs(1)).await;
            open.commands.end();
            open.pushes.end();
        }
    }
}

/// What makes a pub/sub connection.
struct Listening {
    dialer: Arc<Dialer>,
    pushes: Arc<Link>,
    feeds: Arc<Feeds>,
    subscriptions: Arc<Subscriptions>,
    filters: Filters,
    hole: Arc<Hole>,
    limit: Duration,
}

impl Listening {
    async fn connection(&self) -> Result<Dialed> {
        let (feeds, pushes) = (Arc::clone(&self.feeds), Arc::clone(&self.pushes));
        let (filters, hole) = (Arc::clone(&self.filters), Arc::clone(&self.hole));
        let push: Push = Arc::new(move |info: PushInfo| -> Result<(), SendError> {
            if hole.is_told_now(&info) {
                feeds.gap(Gap { cause: GapCause::Reconnect, count: None });
            }
            take(&feeds, &pushes, &filters, info);
            Ok(())
        });
        let mut dialed = self.dialer.dial("", Some(push)).await?;
        let (names, _) = self.subscriptions.all();
        self.hole.expect(names.len());
        let ready = link::subscribe(&mut dialed.connection, &names, false);
        within(self.limit, &dialed.endpoint, ready).await?;
        Ok(dialed)
    }
}

fn take(feeds: &Feeds, pushes: &Link, filters: &Filters, info: PushInfo) {
    if info.kind == PushKind::Disconnection {
        return pushes.break_off();
    }
    if info.kind != PushKind::Message {
        return;
    }
    let mut data = info.data.into_iter();
    if let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) =
        (data.next(), data.next())
        && let Ok(channel) = std::str::from_utf8(&channel)
        && filters.read().get(channel).is_none_or(|filter| filter.wants(&payload))
    {
        feeds.deliver(&channel.into(), &payload.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_drops_what_it_knows_and_keeps_what_it_cannot_read() {
        let names = |some: &[&str]| some.iter().map(ToString::to_string).collect();
        let filter = Filter { keys: names(&["name"]), values: names(&["wanted"]) };
        let map = |key: &str, value: &str| {
            let mut message = vec![0x81];
            rmp::encode::write_str(&mut message, key).unwrap();
            rmp::encode::write_str(&mut message, value).unwrap();
            message
        };
        assert!(filter.wants(&map("name", "wanted")));
        assert!(!filter.wants(&map("name", "other")));
        assert!(filter.wants(&map("another key", "other")));
        for unreadable in [&b""[..], b"\x80", b"\xc1", b"\x81\xa4name", b"\x81\xa4name\x01"] {
            assert!(filter.wants(unreadable), "{unreadable:?}");
        }
    }
}
