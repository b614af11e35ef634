//! One period between connect and close: the connections, the lanes and the tasks that keep them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ahash::AHashMap;
use parking_lot::Mutex;
use redis::{Cmd, Value};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::batch::Channels;
use super::bounds::Bounds;
use super::context::{self, Context};
use super::dial::{Dialed, Dialer, Push, ask, refusal, within};
use super::lanes::Lane;
use super::library::{self, Unready};
use super::link::{self, Link, Status, Trouble};
use super::listen::{self, Call, Names, Needed, Receiver, Subscriptions};
use super::scripts::{self, Script};
use super::waits::{Waiting, Waits};
use super::{checks, claim};
use crate::backend::gate::Gate;
use crate::config::{RedisConfig, Wire};
use crate::error::{Error, Result};
use crate::net;
use crate::shutdown::Tasks;

/// Who waits in a group for what is due, by group and partition, and until when.
type Armed = AHashMap<(Arc<str>, usize), (Waiting, Instant)>;

/// What a session is made of.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) config: RedisConfig,
    pub(super) prefix: String,
    /// Names this process at the server.
    pub(super) process: String,
    pub(super) commands: Arc<Link>,
    pub(super) pushes: Arc<Link>,
    pub(super) status: Arc<Status>,
    pub(super) context: Arc<Context>,
    /// For what only settles, and for everything else.
    pub(super) settles: Lane,
    pub(super) writes: Lane,
    pub(super) receiver: Arc<Receiver>,
    pub(super) subscriptions: Arc<Subscriptions>,
    pub(super) waits: Arc<Waits>,
    /// Places taken by claims that found nothing, with the time to look again.
    pub(super) armed: Mutex<Armed>,
    pub(super) slots: claim::Slots,
    pub(super) bounds: Bounds,
    /// Whether it was looked whether the server keeps what is queued.
    pub(super) knows_persistence: AtomicBool,
    /// Since this process has declared a group, it hears who has noticed lost data.
    pub(super) hears_lost: tokio::sync::Mutex<Option<Needed>>,
    pub(super) tasks: Tasks,
}

fn script_prefix(config: &RedisConfig) -> String {
    // The braces are the hash tag: all keys of the bus stand on one node of a cluster.
    format!("{{{}:0}}:", config.prefix)
}

impl Session {
    /// Connects; everything is ready when it returns.
    pub(super) async fn open(
        config: RedisConfig,
        dialer: Arc<Dialer>,
        gate: Option<Arc<Gate>>,
    ) -> Result<Arc<Self>> {
        let prefix = script_prefix(&config);
        // It stands in every claim: 64 random bits are enough, and short.
        let mut process = uuid::Uuid::new_v4().simple().to_string();
        process.truncate(16);
        let status = Arc::new(Status::new(Arc::clone(&dialer.room)));
        let commands = Arc::new(Link::new("command connection", Arc::clone(&status)));
        let pushes = Arc::new(Link::new("pub/sub connection", Arc::clone(&status)));
        let dataknobs = format!("{}:", config.channel_prefix);
        let hears = config.wire.hears_dataknobs(&config.hear);
        let names = Names {
            // Channels know no databases: what they are called has to tell them apart.
            native: format!("{prefix}b{}:", config.db),
            dataknobs: hears.then(|| dataknobs.clone()),
            wake: format!("{prefix}wake:{process}"),
            lost: format!("{prefix}lost{}", config.db),
        };
        let channels = match config.wire {
            Wire::Native => Channels { prefix: names.native.clone(), bare: false },
            Wire::Dataknobs => Channels { prefix: dataknobs, bare: true },
        };
        let waits = Arc::new(Waits::default());
        let context = Arc::new(Context::new(
            config.clone(),
            prefix.clone(),
            Arc::clone(&commands),
            channels,
            names.clone(),
            process.clone(),
            Arc::clone(&waits),
        ));
        let (wakes, woken) = mpsc::channel(listen::MOST_CALLS);
        let (unneeded, over) = mpsc::unbounded_channel();
        let (known, pushed) = (Arc::clone(&context), Arc::clone(&pushes));
        let receiver = Arc::new(Receiver::new(known, names, pushed, wakes, gate));
        let subscriptions = Arc::new(Subscriptions::new(unneeded));
        let (settles, serve_settles) = Lane::new(Arc::clone(&context));
        let (writes, serve_writes) = Lane::new(Arc::clone(&context));
        let tasks = Tasks::new(Handle::current());
        let session = Arc::new(Self {
            config,
            prefix,
            process,
            commands,
            pushes,
            status,
            context,
            settles,
            writes,
            receiver,
            subscriptions,
            waits,
            armed: Mutex::default(),
            slots: claim::Slots::default(),
            bounds: Bounds::default(),
            knows_persistence: AtomicBool::new(false),
            hears_lost: tokio::sync::Mutex::default(),
            tasks,
        });
        let maker = Maker::of(&session, dialer);
        session.commands.put(maker.command_connection().await?);
        session.pushes.put(maker.push_connection().await?);
        let deadline = Instant::now() + session.config.net.op_timeout;
        // Calls of other processes are answered from here on.
        session.tasks.spawn(take_calls(
            Arc::clone(&session.receiver),
            Arc::clone(&session.context),
            woken,
        ));
        if let Err(trouble) = session.context.refresh(deadline).await {
            return Err(session.failed("connect", trouble));
        }
        checks::look(&session).await;
        session.tasks.spawn(serve_settles);
        session.tasks.spawn(serve_writes);
        session.keep_connections(&maker);
        let (subscriptions, pushes) = (Arc::clone(&session.subscriptions), session.pushes.clone());
        let limit = session.config.net.op_timeout;
        let ends = async move { subscriptions.end_unneeded(&pushes, over, limit).await };
        session.tasks.spawn(ends);
        Ok(session)
    }

    fn keep_connections(&self, maker: &Arc<Maker>) {
        let every = self.config.net.heartbeat;
        let of = |maker: &Arc<Maker>| Arc::clone(maker);
        let (own, waits) = (of(maker), Arc::clone(&self.waits));
        self.tasks.spawn(link::keep(
            Arc::clone(&self.commands),
            every,
            || {},
            move || {
                let maker = of(&own);
                async move { maker.command_connection().await }
            },
            // Who was woken meanwhile could not claim.
            move || waits.wake_all(),
        ));
        let (own, waits) = (of(maker), Arc::clone(&self.waits));
        let (receiver, found) = (Arc::clone(&self.receiver), Arc::clone(&self.receiver));
        self.tasks.spawn(link::keep(
            Arc::clone(&self.pushes),
            every,
            move || receiver.hole.begin(),
            move || {
                let maker = of(&own);
                async move { maker.push_connection().await }
            },
            move || {
                waits.wake_all();
                found.feeds.look();
            },
        ));
    }

    /// Runs a script until it answers, or the operation's time is over.
    pub(super) async fn script(
        &self,
        operation: &'static str,
        script: &Script,
        arguments: impl FnOnce(&mut Cmd),
    ) -> Result<Value> {
        let mut command = script.call(self.commands.calling(), &self.prefix);
        arguments(&mut command);
        self.run(operation, |_| command.clone()).await
    }

    /// Sends a command that may be sent again until it answers, or the operation's time is over;
    /// `command` is told whether it was sent before.
    pub(super) async fn run(
        &self,
        operation: &'static str,
        command: impl Fn(bool) -> Cmd,
    ) -> Result<Value> {
        let deadline = Instant::now() + self.config.net.op_timeout;
        let mut sent = false;
        loop {
            match self.commands.send(&command(sent), deadline).await {
                Ok(answer) => return Ok(answer),
                Err(Trouble::NoScript) => self.context.prepare(deadline).await?,
                Err(Trouble::Lost) if Instant::now() < deadline => sent = true,
                Err(Trouble::Away) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(Trouble::Lost) => return Err(self.failed(operation, Trouble::Lost)),
                Err(Trouble::Refused(closed @ Error::Closed { .. })) => return Err(closed),
                Err(_) if sent => return Err(self.failed(operation, Trouble::Lost)),
                Err(trouble) => return Err(self.failed(operation, trouble)),
            }
        }
    }

    /// Returns the error that trouble means for an operation.
    pub(super) fn failed(&self, operation: &'static str, trouble: Trouble) -> Error {
        self.commands.failed(operation, self.config.net.op_timeout, trouble)
    }

    /// Subscribes to names and patterns of the server and waits for its confirmation.
    pub(super) async fn subscribe(
        &self,
        wanted: Vec<(Vec<u8>, bool)>,
        deadline: Instant,
    ) -> Result<Needed> {
        let added = self.subscriptions.add(&self.pushes, wanted, deadline).await;
        added.map_err(|trouble| self.failed("subscribe", trouble))
    }

    /// Ends everything; waiting calls return.
    pub(super) async fn close(&self) {
        self.receiver.feeds.close();
        self.waits.close();
        self.tasks.stop(Duration::from_secs(1)).await;
        // What reads the pushes holds the link, and the link the connection: cut the circle.
        self.commands.end();
        self.pushes.end();
    }
}

/// Makes the connections of a session, ready for use; holds no session, so that tasks keep none
/// alive.
struct Maker {
    dialer: Arc<Dialer>,
    config: RedisConfig,
    prefix: String,
    commands: Arc<Link>,
    pushes: Arc<Link>,
    receiver: Arc<Receiver>,
    subscriptions: Arc<Subscriptions>,
}

impl Maker {
    fn of(session: &Session, dialer: Arc<Dialer>) -> Arc<Self> {
        Arc::new(Self {
            dialer,
            config: session.config.clone(),
            prefix: session.prefix.clone(),
            commands: Arc::clone(&session.commands),
            pushes: Arc::clone(&session.pushes),
            receiver: Arc::clone(&session.receiver),
            subscriptions: Arc::clone(&session.subscriptions),
        })
    }

    /// Connects and makes the server know the scripts and the limits.
    async fn command_connection(&self) -> Result<Dialed> {
        let mut dialed = self.dialer.dial(&self.prefix, None).await?;
        let (connection, endpoint) = (&mut dialed.connection, &dialed.endpoint);
        let limit = self.config.net.connect_timeout;
        let ready = async {
            let calling = library::prepare(connection, self.config.scripts).await?;
            self.commands.call_by(calling);
            let mut configured = Ok(Value::Nil);
            for command in context::configure(&self.config, calling, &self.prefix) {
                if configured.is_ok() {
                    configured = ask(connection, &command).await;
                }
            }
            match configured {
                // A full server, or one whose disk is full, still has them from before.
                Err(error) if matches!(error.code(), Some("OOM" | "MISCONF" | "NOPERM")) => Ok(()),
                Err(error) => Err(Unready::Refused(error)),
                Ok(_) => Ok(()),
            }
        };
        match tokio::time::timeout(limit, ready).await {
            Ok(Ok(())) => {}
            Ok(Err(Unready::Refused(error))) => return Err(refusal(endpoint, &error)),
            Ok(Err(Unready::Library(problem))) => {
                return Err(net::failed(endpoint, &format!("{problem}; {}", library::REMEDY)));
            }
            Err(_) => return Err(net::failed(endpoint, &format!("no answer within {limit:?}"))),
        }
        Ok(dialed)
    }

    /// Connects and subscribes to everything that is wanted.
    async fn push_connection(&self) -> Result<Dialed> {
        let receiver = Arc::clone(&self.receiver);
        let push: Push = Arc::new(move |info| -> Result<(), redis::aio::SendError> {
            receiver.take(info);
            Ok(())
        });
        let mut dialed = self.dialer.dial(&self.prefix, Some(push)).await?;
        let (connection, endpoint) = (&mut dialed.connection, &dialed.endpoint);
        let limit = self.config.net.connect_timeout;
        let (mut names, patterns) = self.subscriptions.all();
        names.push(self.receiver.names.wake.clone().into_bytes());
        self.receiver.hole.expect(names.len() + patterns.len());
        let ready = async {
            let mut subscribed = link::subscribe(connection, &names, false).await;
            if subscribed.is_ok() {
                subscribed = link::subscribe(connection, &patterns, true).await;
            }
            match subscribed {
                // Who only publishes needs no wake-ups.
                Err(error)
                    if error.code() == Some("NOPERM") && self.subscriptions.all().0.is_empty() =>
                {
                    self.pushes.status.warn(
                        "the user may not subscribe: nothing is received, and consumers are woken \
                         by the sweep only",
                    );
                    Ok(())
                }
                other => other,
            }
        };
        within(limit, endpoint, ready).await?;
        Ok(dialed)
    }
}

/// Does what other processes ask for, one call after the other.
async fn take_calls(
    receiver: Arc<Receiver>,
    context: Arc<Context>,
    mut calls: mpsc::Receiver<Call>,
) {
    while let Some(call) = calls.recv().await {
        match call {
            Call::Wake(what) => pass_wake(&receiver, &context, &what).await,
            Call::Lost(caller) => context.answer_call(&caller).await,
        }
    }
}

/// Wakes who waits here; a wake-up for nobody goes on to another process.
async fn pass_wake(receiver: &Receiver, context: &Context, what: &str) {
    let Some((group, queue)) = what.split_once(':') else { return };
    let Ok(number) = group.parse() else { return };
    let name = context.registry.read().name(number).cloned();
    let Some(name) = name else {
        // A group declared elsewhere: whoever waits for it is here, under a name not known yet.
        return receiver.waits.wake_all();
    };
    if !receiver.waits.wake(&name) {
        let mut command = scripts::PASS.call(context.link.calling(), &context.prefix);
        command.arg(group).arg(queue);
        let deadline = Instant::now() + context.op_timeout;
        let _ = context.link.send(&command, deadline).await;
    }
}
