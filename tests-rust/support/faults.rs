//! A backend that fails on demand, so that what stands above one can be tested against failure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use eventbus::backend::{
    Backend, Capabilities, ClaimRequest, Committed, DeadLetter, Delivery, EventKey, GroupSpec,
    Inspection, Lease, ListenRequest, Listener, MessageAction, MessageId, MessageInfo, Record,
    Transaction,
};
use eventbus::error::{Error, Result};
use eventbus::topic::Binding;
use parking_lot::Mutex;

/// When a planned failure strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// Instead of the call: nothing has happened.
    Before,
    /// After the call: it took effect, but its answer is lost.
    After,
}

#[derive(Debug, Default)]
struct Script {
    calls: HashMap<&'static str, u64>,
    planned: HashMap<(&'static str, u64), Strike>,
}

/// Wraps a backend; calls pass through except the planned ones.
#[derive(Debug)]
pub struct Faults {
    inner: Arc<dyn Backend>,
    script: Mutex<Script>,
}

impl Faults {
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, script: Mutex::default() }
    }

    /// Makes the `nth` call from now (1 = the next) of a method fail.
    pub fn plan(&self, method: &'static str, nth: u64, strike: Strike) {
        let mut script = self.script.lock();
        let done = script.calls.get(method).copied().unwrap_or(0);
        script.planned.insert((method, done + nth), strike);
    }

    fn next(&self, method: &'static str) -> Option<Strike> {
        let mut script = self.script.lock();
        let call = script.calls.entry(method).or_insert(0);
        *call += 1;
        let call = *call;
        script.planned.remove(&(method, call))
    }

    async fn pass<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match self.next(method) {
            None => call.await,
            Some(Strike::Before) => Err(refused()),
            Some(Strike::After) => {
                let _lost = call.await;
                Err(lost(method))
            }
        }
    }
}

fn refused() -> Error {
    Error::Connect { endpoint: "faults".into(), reason: "planned failure".into() }
}

fn lost(operation: &'static str) -> Error {
    Error::Timeout {
        operation,
        after: Duration::from_secs(1),
        outcome_unknown: true,
        trouble: String::new(),
    }
}

#[async_trait]
impl Backend for Faults {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn has_queue(&self, topic: &str) -> bool {
        self.inner.has_queue(topic)
    }

    async fn commit(&self, batch: Vec<Transaction>) -> Vec<Result<Committed>> {
        let count = batch.len();
        let done = self.pass("commit", async { Ok(self.inner.commit(batch).await) }).await;
        done.unwrap_or_else(|error| vec![Err(error); count])
    }

    async fn listen(&self, request: ListenRequest) -> Result<Box<dyn Listener>> {
        self.pass("listen", self.inner.listen(request)).await
    }

    async fn declare_group(&self, spec: GroupSpec) -> Result<()> {
        self.pass("declare_group", self.inner.declare_group(spec)).await
    }

    async fn unbind(&self, group: &str, bindings: &[Binding]) -> Result<u64> {
        self.pass("unbind", self.inner.unbind(group, bindings)).await
    }

    async fn delete_group(&self, group: &str) -> Result<u64> {
        self.pass("delete_group", self.inner.delete_group(group)).await
    }

    async fn purge(&self, group: &str) -> Result<u64> {
        self.pass("purge", self.inner.purge(group)).await
    }

    async fn pause(&self, group: &str, paused: bool) -> Result<()> {
        self.pass("pause", self.inner.pause(group, paused)).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Delivery>> {
        self.pass("claim", self.inner.claim(request)).await
    }

    async fn wait_ready(&self, request: &ClaimRequest) -> Result<()> {
        self.pass("wait_ready", self.inner.wait_ready(request)).await
    }

    async fn renew(&self, leases: &[Lease], lease: Duration) -> Vec<Result<()>> {
        let renewed = async { Ok(self.inner.renew(leases, lease).await) };
        let done = self.pass("renew", renewed).await;
        done.unwrap_or_else(|error| vec![Err(error); leases.len()])
    }

    async fn read(&self, keys: &[Arc<str>]) -> Result<Vec<Option<Record>>> {
        self.pass("read", self.inner.read(keys)).await
    }

    async fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Record>> {
        self.pass("scan", self.inner.scan(prefix, after, limit)).await
    }

    async fn inspect(&self) -> Result<Inspection> {
        self.pass("inspect", self.inner.inspect()).await
    }

    async fn message(&self, group: Option<&str>, event: EventKey) -> Result<Vec<MessageInfo>> {
        self.pass("message", self.inner.message(group, event)).await
    }

    async fn act_on(
        &self,
        group: Option<&str>,
        event: EventKey,
        action: MessageAction,
    ) -> Result<u64> {
        self.pass("act_on", self.inner.act_on(group, event, action)).await
    }

    async fn dead_letters(
        &self,
        group: &str,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        self.pass("dead_letters", self.inner.dead_letters(group, after, limit)).await
    }

    async fn dead_news(&self, group: &str) -> Result<Vec<DeadLetter>> {
        self.pass("dead_news", self.inner.dead_news(group)).await
    }

    async fn retry_dead(&self, group: &str, ids: &[MessageId]) -> Result<u64> {
        self.pass("retry_dead", self.inner.retry_dead(group, ids)).await
    }

    async fn discard_dead(&self, group: &str, ids: &[MessageId]) -> Result<u64> {
        self.pass("discard_dead", self.inner.discard_dead(group, ids)).await
    }

    async fn close(&self) -> Result<()> {
        self.pass("close", self.inner.close()).await
    }
}
