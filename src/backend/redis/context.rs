//! What every write needs: the connection, and the bindings; how they come back when data are lost.
//!
//! A server that lost its data says so by a new epoch. Who notices, at the next publish or claim,
//! declares again what it knew, and asks every process that has declared groups to do the same,
//! before it goes on: what is accepted from then on is kept.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use parking_lot::{Mutex, RwLock};
use redis::{Cmd, Value, cmd};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::batch::Channels;
use super::link::{Link, Trouble};
use super::listen::Names;
use super::registry::{Registry, write_binding};
use super::scripts::Calling;
use super::waits::Waits;
use super::{kept, micros, scripts};
use crate::backend::GroupSpec;
use crate::config::RedisConfig;
use crate::error::{Error, Result};

/// How long who has noticed lost data waits for the other processes.
const LONGEST_CALL: Duration = Duration::from_secs(1);

/// What an operator is told when groups were lost.
const LOST: &str = "the server lost its data: groups were declared anew, what waited is gone";

/// What a process answers to who called.
pub(super) const DECLARED: &str = "declared";

/// What all operations of a session share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) link: Arc<Link>,
    pub(super) prefix: String,
    pub(super) channels: Channels,
    pub(super) names: Names,
    /// Names this process at the server.
    pub(super) process: String,
    pub(super) registry: RwLock<Arc<Registry>>,
    pub(super) waits: Arc<Waits>,
    pub(super) dedup_window: Duration,
    pub(super) op_timeout: Duration,
    /// What this process has declared.
    pub(super) declared: Mutex<AHashMap<Arc<str>, GroupSpec>>,
    /// Counts the answers of other processes.
    pub(super) answers: watch::Sender<usize>,
    /// One reads the bindings at a time, so that an older copy never replaces a newer one.
    turn: tokio::sync::Mutex<()>,
    config: RedisConfig,
}

impl Context {
    pub(super) fn new(
        config: RedisConfig,
        prefix: String,
        link: Arc<Link>,
        channels: Channels,
        names: Names,
        process: String,
        waits: Arc<Waits>,
    ) -> Self {
        Self {
            link,
            prefix,
            channels,
            names,
            process,
            registry: RwLock::default(),
            waits,
            dedup_window: config.dedup_window,
            op_timeout: config.net.op_timeout,
            declared: Mutex::default(),
            answers: watch::Sender::new(0),
            turn: tokio::sync::Mutex::default(),
            config,
        }
    }

    /// Makes the server ready to run the scripts again.
    ///
    /// # Errors
    /// What keeps it from running them.
    pub(super) async fn prepare(&self, deadline: Instant) -> Result<()> {
        match self.link.prepare(self.config.scripts, deadline).await {
            Err(Trouble::Refused(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the bindings as they were read last.
    pub(super) fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.registry.read())
    }

    /// Reads the bindings anew; what the server has lost is declared again before.
    pub(super) async fn refresh(&self, deadline: Instant) -> Result<(), Trouble> {
        let _turn = self.turn.lock().await;
        let known = self.registry();
        let found = self.read(deadline).await?;
        if !self.restore(&known, &found, deadline).await? && !found.is_new {
            *self.registry.write() = Arc::new(found);
            return Ok(());
        }
        self.call_others(deadline).await;
        *self.registry.write() = Arc::new(self.read(deadline).await?);
        // Who waits was forgotten by the server.
        self.waits.wake_all();
        Ok(())
    }

    async fn read(&self, deadline: Instant) -> Result<Registry, Trouble> {
        let mut command = scripts::DECLARE.call(self.link.calling(), &self.prefix);
        command.arg("registry").arg("");
        // An answer of a later server is only compared once more.
        let server = self.link.server_id();
        let answer = self.link.send(&command, deadline).await?;
        let mut registry = Registry::read(answer).await.ok_or_else(|| {
            let reason = "the groups stored under the prefix make no sense".to_owned();
            Trouble::Refused(Error::Internal { reason })
        })?;
        if registry.unreadable > 0 {
            self.link.status.warn(
                "a group has a binding that is not used here: a newer version declared it, \
                 somebody wrote into the keys of the bus, or the patterns of all groups would make \
                 every publish slow",
            );
        }
        registry.server = server;
        Ok(registry)
    }

    /// Declares again what was known and was lost; returns whether something may have been lost.
    async fn restore(
        &self,
        known: &Registry,
        found: &Registry,
        deadline: Instant,
    ) -> Result<bool, Trouble> {
        let is_lost = !known.epoch.is_empty() && known.epoch != found.epoch;
        let is_moved = !known.epoch.is_empty() && known.server != found.server;
        if !is_lost && !is_moved {
            // Whoever else deleted a group meant it.
            self.declared.lock().retain(|name, _| found.known(name).is_some());
            return Ok(false);
        }
        let mut specs: Vec<GroupSpec> = self.declared.lock().values().cloned().collect();
        if is_lost {
            specs.extend(known.specs());
            for command in configure(&self.config, self.link.calling(), &self.prefix) {
                // A full server refuses it.
                let _ = self.link.send(&command, deadline).await;
            }
        }
        // Another process may have declared them already: what waited is gone all the same.
        if is_lost && !specs.is_empty() {
            self.link.status.warn(LOST);
        }
        // After a move only the last changes may be missing, which the new server never had.
        for spec in specs.iter().filter(|spec| !found.has(spec)) {
            self.link.status.warn(LOST);
            self.link.send(&declare(self.link.calling(), &self.prefix, spec), deadline).await?;
        }
        Ok(true)
    }

    /// Asks every process that has declared groups to declare them again, and waits for them.
    async fn call_others(&self, deadline: Instant) {
        let mut answers = self.answers.subscribe();
        let before = *answers.borrow_and_update();
        let mut call = cmd("PUBLISH");
        call.arg(self.names.lost.as_bytes()).arg(&self.process);
        let called = match self.link.send(&call, deadline).await {
            Ok(Value::Int(called)) => usize::try_from(called).unwrap_or(0),
            // A user may have no right to it; then everybody notices by himself.
            _ => 0,
        };
        let all = answers.wait_for(|count| count.saturating_sub(before) >= called);
        let limit = deadline.min(Instant::now() + LONGEST_CALL);
        let _ = timeout_at(limit, all).await;
    }

    /// Does what another process asks for that has noticed lost data.
    pub(super) async fn answer_call(&self, caller: &str) {
        if caller == self.process {
            // It has done so before it called.
            return self.count_answer();
        }
        let deadline = Instant::now() + self.op_timeout;
        // What this fails to declare is declared when the next publish or claim notices.
        let _ = self.declare_again(deadline).await;
        let mut answer = cmd("PUBLISH");
        answer.arg(format!("{}wake:{caller}", self.prefix)).arg(DECLARED);
        let _ = self.link.send(&answer, deadline).await;
        // Who waits was forgotten by the server.
        self.waits.wake_all();
    }

    pub(super) fn count_answer(&self) {
        self.answers.send_modify(|count| *count += 1);
    }

    async fn declare_again(&self, deadline: Instant) -> Result<(), Trouble> {
        // Who reads the bindings may be waiting for others, who wait for this one: it is not waited
        // for, and takes them over itself.
        let turn = self.turn.try_lock();
        let known = self.registry();
        let mut found = self.read(deadline).await?;
        if self.restore(&known, &found, deadline).await? {
            found = self.read(deadline).await?;
        }
        if turn.is_ok() {
            *self.registry.write() = Arc::new(found);
        }
        Ok(())
    }
}

/// Returns the command that declares a group.
pub(super) fn declare(calling: Calling, prefix: &str, spec: &GroupSpec) -> Cmd {
    let mut command = scripts::DECLARE.call(calling, prefix);
    command.arg("declare").arg(spec.name.as_bytes());
    command.arg(spec.max_length.map(|max| max.to_string()).unwrap_or_default());
    for binding in &spec.bindings {
        command.arg(write_binding(binding));
    }
    command
}

/// Returns the commands that tell the server the limits of the bus.
pub(super) fn configure(config: &RedisConfig, calling: Calling, prefix: &str) -> Vec<Cmd> {
    let mut limits = cmd("HSET");
    limits
        .arg(format!("{prefix}config"))
        .arg("dead_retention")
        .arg(micros(config.dead_retention))
        .arg("max_dead")
        .arg(config.max_dead)
        .arg("max_tombstones")
        .arg(config.max_tombstones);
    std::iter::once(limits).chain(kept::configure(config, calling, prefix)).collect()
}
