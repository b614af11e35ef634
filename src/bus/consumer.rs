//! A consumer: claims what its slots are free for, keeps the leases, settles.
//!
//! In process, claims and settlements are done where they are asked for. On a broker a task claims
//! ahead while slots are free, and acknowledgements travel in batches behind the handlers.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use ahash::AHashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Bus;
use crate::backend::{
    ClaimRequest, DeadLetter, DeadReason, Delivery, GroupSpec, Lease, Op, Outcome, Token,
    Transaction,
};
use crate::error::{Error, Result};
use crate::retry::RetryPolicy;
use crate::topic::Binding;

/// How long a settlement waits for company at most.
const LINGER: Duration = Duration::from_millis(1);

/// The error of a dead letter without signature.
const UNSIGNED: &str = "no valid signature by a key of this bus for the topic it was published on; if \
     its publisher can be trusted, give this bus the publisher's signing_key and retry it";

/// Claims that follow one another faster than this and bring almost nothing are wasteful.
const HASTE: Duration = Duration::from_micros(500);
/// How many of them in a row make the next ones wait.
const HASTY: u32 = 8;

/// How a consumer claims.
#[derive(Debug, Clone)]
pub struct ConsumeOptions {
    /// The group.
    pub group: Arc<str>,
    /// What the consumer handles; declared for the group.
    pub bindings: Vec<Binding>,
    /// Most deliveries in hand at a time (default 16).
    pub concurrency: usize,
    /// How long a claim holds without renewal (default 30 s).
    pub lease: Duration,
    /// How long a delivery is renewed at most (default 1 h).
    pub max_lease: Duration,
    /// What follows a failure.
    pub retry: RetryPolicy,
    /// Most messages in the group; `None` leaves what is set.
    pub max_length: Option<u64>,
    /// On a broker: claim for free slots before somebody waits (a running handler's consumer), or
    /// only then (an iterator that may not be read).
    pub ahead: bool,
}

/// Claims deliveries for one handler. Dropping it ends its lease keeper; what it holds is
/// redelivered when the leases run out, so [`Consumer::release`] first.
#[derive(Debug)]
pub struct Consumer {
    bus: Arc<Bus>,
    options: ConsumeOptions,
    claim: ClaimRequest,
    state: Mutex<State>,
    /// Wakes who waits for something to claim.
    stopped: CancellationToken,
    /// Wakes who waits for a free slot.
    freed: Notify,
    /// Wakes who waits for settlements under way.
    settled: Notify,
    /// Wakes who waits for something to claim, as there are dead letters to report.
    told: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Claimed, not handed out yet.
    ready: VecDeque<Delivery>,
    /// Claimed and not settled, handed out or not.
    held: AHashMap<Token, Held>,
    /// Lost to the sweep or another worker, not reported yet.
    lost: Vec<Token>,
    /// Died without a word of a handler, not reported yet.
    dead: Vec<DeadLetter>,
    /// Wakes who waits for one of these two.
    news_wakers: Vec<Waker>,
    /// Wakes who waits for something to be claimed.
    ready_wakers: Vec<Waker>,
    /// Settlements under way, those that wait for company included.
    settling: usize,
    /// Whether a claim ahead is under way.
    claiming: bool,
    /// Settlements that wait for company.
    lingering: Vec<(Lease, Outcome)>,
    /// Why the task that claims ahead has ended.
    failure: Option<Error>,
    closed: bool,
}

/// What happened behind the handlers' backs.
#[derive(Debug, Default)]
pub struct News {
    /// Leases that were lost.
    pub lost: Vec<Token>,
    /// What died by a decision of the store: crashed, expired, undecodable or unsigned.
    pub dead: Vec<DeadLetter>,
}

/// Most dead letters that wait to be reported here; more stay with the backend.
const MAX_DEAD: usize = 1000;

#[derive(Debug)]
struct Held {
    lease: Lease,
    since: Instant,
}

impl Consumer {
    /// Declares the group and starts the lease keeper; must be called inside a runtime.
    ///
    /// # Errors
    /// What the backend says of the group.
    pub async fn start(bus: &Arc<Bus>, options: ConsumeOptions) -> Result<Arc<Self>> {
        let spec = GroupSpec {
            name: Arc::clone(&options.group),
            bindings: options.bindings.clone(),
            max_length: options.max_length,
        };
        bus.backend.declare_group(spec).await?;
        let claim = ClaimRequest {
            group: Arc::clone(&options.group),
            bindings: options.bindings.clone().into(),
            max: 1,
            lease: options.lease,
            max_deliveries: options.retry.max_deliveries,
        };
        let consumer = Arc::new(Self {
            bus: Arc::clone(bus),
            options,
            claim,
            state: Mutex::default(),
            stopped: CancellationToken::new(),
            freed: Notify::new(),
            settled: Notify::new(),
            told: Notify::new(),
        });
        if bus.backend.in_process().is_none() {
            bus.tasks.spawn(claim_ahead(Arc::downgrade(&consumer)));
        }
        bus.tasks.spawn(keep_leases(Arc::downgrade(&consumer), consumer.options.lease));
        let interval = bus.backend.sweep_interval();
        bus.tasks.spawn(gather_dead(Arc::downgrade(&consumer), interval));
        Ok(consumer)
    }

    /// Returns the options.
    #[must_use]
    pub fn options(&self) -> &ConsumeOptions {
        &self.options
    }

    /// Returns the bus.
    #[must_use]
    pub fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// Takes a delivery that was claimed before.
    #[must_use]
    pub fn pop(&self) -> Option<Delivery> {
        self.state.lock().ready.pop_front()
    }

    /// Whether there is a delivery that was claimed before.
    #[must_use]
    pub fn has_claimed(&self) -> bool {
        !self.state.lock().ready.is_empty()
    }

    /// Fails when nothing will be claimed ahead any more.
    ///
    /// # Errors
    /// `Closed` after [`Consumer::stop`]; what ended the claims otherwise, `NotFound` when the group
    /// was deleted.
    pub fn check_open(&self) -> Result<()> {
        let state = self.state.lock();
        match &state.failure {
            _ if state.closed => Err(Error::Closed { what: "consumer" }),
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }

    /// Claims as much as there are free slots; returns how many deliveries it got.
    ///
    /// # Errors
    /// What the backend says; `Closed` after [`Consumer::release`].
    ///
    /// # Cancel safety
    /// What was claimed is in hand before this returns, or still queued.
    pub async fn fill(&self) -> Result<usize> {
        self.claim_free().await.map(|(claimed, _)| claimed)
    }

    /// Does so; returns how many deliveries it got, and how many it asked for.
    async fn claim_free(&self) -> Result<(usize, usize)> {
        let free = {
            let state = self.state.lock();
            if state.closed {
                return Err(Error::Closed { what: "consumer" });
            }
            self.free(&state)
        };
        if free == 0 {
            return Ok((0, 0));
        }
        let request = ClaimRequest { max: free, ..self.claim.clone() };
        let claimed = match self.bus.backend.in_process() {
            Some(local) => local.claim_now(&request)?,
            None => self.bus.backend.claim(&request).await?,
        };
        if claimed.is_empty() {
            return Ok((0, free));
        }
        let count = claimed.len();
        let (signed, unsigned) = self.sift(claimed);
        let late = self.hold(signed);
        self.bury(unsigned).await;
        if late.is_empty() {
            return Ok((count, free));
        }
        // Stopped while the claim was under way.
        let release = |lease| Transaction::settle(lease, Outcome::Release);
        drop(self.bus.backend.commit(late.into_iter().map(release).collect()).await);
        Err(Error::Closed { what: "consumer" })
    }

    /// Splits claimed deliveries into those that may be decoded, and those that are not signed.
    fn sift(&self, claimed: Vec<Delivery>) -> (Vec<Delivery>, Vec<Delivery>) {
        let Some(gate) = self.bus.backend.gate() else { return (claimed, Vec::new()) };
        let claimed = claimed.into_iter();
        claimed.partition(|delivery| gate.admits_stored(&delivery.topic, &delivery.body))
    }

    /// Moves what is not signed to the dead letters.
    async fn bury(&self, unsigned: Vec<Delivery>) {
        if unsigned.is_empty() {
            return;
        }
        let bury = |delivery: Delivery| {
            let error = UNSIGNED.to_owned();
            let outcome = Outcome::Dead { reason: DeadReason::Unsigned, error };
            Transaction::settle(delivery.lease, outcome)
        };
        // One that cannot be settled now comes again when its lease ends.
        drop(self.bus.backend.commit(unsigned.into_iter().map(bury).collect()).await);
    }

    /// Returns how many more may be claimed. What is handled and was not sent yet counts, or a crash
    /// would repeat more than there are slots.
    fn free(&self, state: &State) -> usize {
        self.options.concurrency.saturating_sub(state.held.len() + state.lingering.len())
    }

    /// Takes claimed deliveries in hand; returns the leases of those that came after the stop.
    fn hold(&self, claimed: Vec<Delivery>) -> Vec<Lease> {
        let since = Instant::now();
        let mut state = self.state.lock();
        if state.closed {
            return claimed.into_iter().map(|delivery| delivery.lease).collect();
        }
        for delivery in claimed {
            let lease = delivery.lease.clone();
            state.held.insert(lease.token, Held { lease, since });
            state.ready.push_back(delivery);
        }
        let wakers = std::mem::take(&mut state.ready_wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        Vec::new()
    }

    /// Waits until a delivery can be taken, or a claim may succeed, or the consumer was stopped.
    /// Cancel safe.
    ///
    /// # Errors
    /// What the backend says; `NotFound` when the group was deleted.
    pub async fn wait_ready(&self) -> Result<()> {
        if self.bus.backend.in_process().is_none() {
            return self.claimed().await;
        }
        let ready = async {
            while self.in_hand() >= self.options.concurrency {
                self.freed.notified().await;
            }
            self.bus.backend.wait_ready(&self.claim).await
        };
        tokio::select! {
            () = self.stopped.cancelled() => Ok(()),
            () = self.told.notified() => Ok(()),
            ready = ready => ready,
        }
    }

    /// Waits for what is claimed ahead.
    async fn claimed(&self) -> Result<()> {
        poll_fn(|context| {
            let mut state = self.state.lock();
            if let Some(failure) = &state.failure {
                return Poll::Ready(Err(failure.clone()));
            }
            // An iterator has nobody else to report the dead letters.
            let has_news = !self.options.ahead && !state.dead.is_empty();
            if !state.ready.is_empty() || has_news || state.closed {
                return Poll::Ready(Ok(()));
            }
            state.ready_wakers.retain(|waker| !waker.will_wake(context.waker()));
            state.ready_wakers.push(context.waker().clone());
            drop(state);
            self.freed.notify_one();
            Poll::Pending
        })
        .await
    }

    /// Waits until claiming is worth a round trip: nothing is left to hand out, or half of the
    /// slots are free.
    async fn wait_free(&self) {
        loop {
            {
                let state = self.state.lock();
                let free = self.free(&state);
                let asked = state.ready.is_empty() && !state.ready_wakers.is_empty();
                let ahead = self.options.ahead
                    && (state.ready.is_empty() || free * 2 >= self.options.concurrency);
                if (free > 0 && (asked || ahead)) || state.closed {
                    return;
                }
            }
            // Looks again now and then: who forgot the consumer tells nobody.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.freed.notified()).await;
            if self.is_finished() {
                return;
            }
        }
    }

    /// Ends the task that claims ahead with an error that who waits is told.
    fn fail(&self, error: Error) {
        let mut state = self.state.lock();
        state.failure = Some(error);
        let wakers = std::mem::take(&mut state.ready_wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Settles deliveries in the background, each on its own; [`Consumer::stop`] waits for it. One
    /// that comes too late is reported by [`Consumer::lost`].
    ///
    /// A few wait up to [`LINGER`] for company, as long as most slots are free: a request per
    /// delivery costs a server more than the settlement does.
    pub fn settle_later(self: &Arc<Self>, tokens: &[Token], outcome: &Outcome) {
        let mut state = self.state.lock();
        let alone = state.lingering.is_empty();
        let before = state.settling;
        for token in tokens {
            if let Some(held) = state.held.remove(token) {
                state.lingering.push((held.lease, outcome.clone()));
                state.settling += 1;
            }
        }
        let idle = state.ready.is_empty();
        let added = state.settling - before;
        let is_full = state.lingering.len() * 4 >= self.options.concurrency || state.closed;
        drop(state);
        if idle || added > 1 {
            self.freed.notify_one();
        }
        if added == 0 {
            return;
        }
        let consumer = Arc::clone(self);
        // The end of the process waits for it a moment.
        if is_full {
            self.bus.tasks.spawn_last(async move { consumer.settle_lingering().await });
        } else if alone {
            self.bus.tasks.spawn_last(async move {
                tokio::select! {
                    () = consumer.stopped.cancelled() => {}
                    () = tokio::time::sleep(LINGER) => {}
                }
                consumer.settle_lingering().await;
            });
        }
    }

    /// Sends the settlements that wait for company.
    async fn settle_lingering(&self) {
        let lingering = std::mem::take(&mut self.state.lock().lingering);
        if lingering.is_empty() {
            return;
        }
        // Their slots are free from here on: a claim need not wait for the answer.
        self.freed.notify_one();
        let (tokens, batch): (Vec<Token>, Vec<Transaction>) = lingering
            .into_iter()
            .map(|(lease, outcome)| (lease.token, Transaction::settle(lease, outcome)))
            .unzip();
        let results = self.bus.backend.commit(batch).await;
        let failed = tokens.iter().zip(results).filter(|(_, result)| result.is_err());
        let late: Vec<Token> = failed.map(|(token, _)| *token).collect();
        self.bus.counters.leases_lost.add(late.len() as u64);
        let mut state = self.state.lock();
        state.settling -= tokens.len();
        state.lost.extend(late);
        let wakers =
            if state.lost.is_empty() { Vec::new() } else { std::mem::take(&mut state.news_wakers) };
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        self.settled.notify_waiters();
    }

    /// Waits until no claim is under way, but not for a server that does not answer.
    async fn wait_claimed(&self) {
        let claimed = self.wait_until(|state| !state.claiming);
        let _ = tokio::time::timeout(Duration::from_secs(1), claimed).await;
    }

    /// Waits until no settlement is under way.
    async fn wait_settled(&self) {
        self.wait_until(|state| state.settling == 0).await;
    }

    /// Waits for what a settlement or claim that ends may bring about.
    async fn wait_until(&self, holds: impl Fn(&State) -> bool) {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if holds(&self.state.lock()) {
                return;
            }
            settled.await;
        }
    }

    /// Settles a delivery.
    ///
    /// # Errors
    /// `LeaseLost` when it was taken back: nothing changed.
    pub async fn settle(&self, token: Token, outcome: Outcome) -> Result<()> {
        let transaction = Transaction { ops: vec![self.settlement(token, outcome)?] };
        let result = self.bus.commit(transaction).await;
        if !matches!(&result, Err(error) if error.is_retryable()) {
            self.forget(token);
        }
        result.map(|_| ())
    }

    /// Settles deliveries of an in-process backend, each on its own, in one go.
    ///
    /// # Errors
    /// `Unsupported` on a backend elsewhere. Each result is as for [`Consumer::settle`].
    pub fn settle_all_now(&self, tokens: &[Token], outcome: &Outcome) -> Result<Vec<Result<()>>> {
        let Some(local) = self.bus.backend.in_process() else {
            return Err(Error::Unsupported {
                operation: "settling at once",
                backend: self.bus.backend.capabilities().name,
                remedy: "await settle",
            });
        };
        let mut state = self.state.lock();
        let settlements: Vec<Option<Lease>> =
            tokens.iter().map(|token| state.held.remove(token).map(|held| held.lease)).collect();
        drop(state);
        self.freed.notify_one();
        let batch = settlements
            .iter()
            .flatten()
            .map(|lease| Transaction::settle(lease.clone(), outcome.clone()));
        let mut results = local.commit_all_now(batch.collect()).into_iter();
        let lost = |token: &Token| {
            Err(Error::LeaseLost { group: self.options.group.to_string(), token: *token })
        };
        let settled = tokens.iter().zip(settlements).map(|(token, lease)| match lease {
            Some(_) => results.next().map_or_else(|| lost(token), |result| result.map(|_| ())),
            None => lost(token),
        });
        Ok(settled.collect())
    }

    /// Returns the step that settles a delivery in hand, for a transaction of its own.
    ///
    /// # Errors
    /// `LeaseLost` when it is not in hand any more.
    pub fn settlement(&self, token: Token, outcome: Outcome) -> Result<Op> {
        let state = self.state.lock();
        match state.held.get(&token) {
            Some(held) => Ok(Op::Settle(held.lease.clone(), outcome)),
            None => Err(Error::LeaseLost { group: self.options.group.to_string(), token }),
        }
    }

    /// Takes a delivery that was settled by a transaction out of the keeper's hands.
    pub fn forget(&self, token: Token) {
        self.state.lock().held.remove(&token);
        // Keeps a permit, so a slot that is freed between a look and the wait is not missed.
        self.freed.notify_one();
    }

    /// Returns what follows a handler error: a retry with full jitter, or the dead letters.
    #[must_use]
    pub fn after_failure(&self, attempts: u32, error: String, fraction: f64) -> Outcome {
        match self.options.retry.delay(attempts + 1, fraction) {
            Some(after) => Outcome::Retry { after, error },
            None => Outcome::Dead { reason: DeadReason::Failed, error },
        }
    }

    /// Waits for lost leases and dead letters; returns nothing when it was stopped. Cancel safe.
    pub async fn news(&self) -> News {
        poll_fn(|context| {
            let mut state = self.state.lock();
            if state.lost.is_empty() && state.dead.is_empty() && !state.closed {
                state.news_wakers.retain(|waker| !waker.will_wake(context.waker()));
                state.news_wakers.push(context.waker().clone());
                return Poll::Pending;
            }
            let lost = std::mem::take(&mut state.lost);
            Poll::Ready(News { lost, dead: std::mem::take(&mut state.dead) })
        })
        .await
    }

    /// Takes the dead letters that wait to be reported.
    #[must_use]
    pub fn take_dead(&self) -> Vec<DeadLetter> {
        std::mem::take(&mut self.state.lock().dead)
    }

    /// Asks the backend what died by its own decision.
    async fn gather_dead(&self) {
        if self.state.lock().dead.len() >= MAX_DEAD {
            return;
        }
        // What fails here is asked for again at the next turn.
        let found = self.bus.backend.dead_news(&self.options.group).await.unwrap_or_default();
        if found.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        state.dead.extend(found);
        let mut wakers = std::mem::take(&mut state.news_wakers);
        if !self.options.ahead {
            wakers.append(&mut state.ready_wakers);
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        if !self.options.ahead {
            self.told.notify_one();
        }
    }

    /// Whether it claims nothing more.
    fn is_stopped(&self) -> bool {
        self.stopped.is_cancelled()
    }

    /// Stops claiming and gives back what was not handed out; what is handed out stays held.
    ///
    /// # Errors
    /// What the backend says; the leases then run out by themselves.
    pub async fn stop(&self) -> Result<()> {
        let (unstarted, wakers) = {
            let mut state = self.state.lock();
            state.closed = true;
            let mut wakers = std::mem::take(&mut state.news_wakers);
            wakers.append(&mut state.ready_wakers);
            (std::mem::take(&mut state.ready), wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        self.stopped.cancel();
        self.freed.notify_one();
        self.give_back(unstarted.into_iter().map(|delivery| delivery.lease.token).collect()).await
    }

    /// Stops and gives back everything in hand, counting nothing.
    ///
    /// # Errors
    /// As for [`Consumer::stop`].
    pub async fn release(&self) -> Result<()> {
        self.stop().await?;
        self.wait_claimed().await;
        self.wait_settled().await;
        let held = self.state.lock().held.keys().copied().collect();
        self.give_back(held).await
    }

    async fn give_back(&self, tokens: Vec<Token>) -> Result<()> {
        let batch: Vec<_> = tokens
            .iter()
            .filter_map(|token| self.settlement(*token, Outcome::Release).ok())
            .map(|op| Transaction { ops: vec![op] })
            .collect();
        if batch.is_empty() {
            return Ok(());
        }
        let results = self.bus.backend.commit(batch).await;
        let mut state = self.state.lock();
        for token in tokens {
            state.held.remove(&token);
        }
        drop(state);
        self.freed.notify_one();
        results
            .into_iter()
            .find_map(|result| match result {
                Err(Error::LeaseLost { .. }) | Ok(_) => None,
                Err(error) => Some(Err(error)),
            })
            .unwrap_or(Ok(()))
    }

    /// Returns how many deliveries are in hand, those whose settlement is under way included.
    #[must_use]
    pub fn in_hand(&self) -> usize {
        let state = self.state.lock();
        state.held.len() + state.settling
    }

    /// Whether it was stopped and holds nothing any more.
    fn is_finished(&self) -> bool {
        let state = self.state.lock();
        state.closed && state.held.is_empty()
    }

    async fn renew(&self) {
        let leases = self.due_for_renewal(Instant::now());
        if leases.is_empty() {
            return;
        }
        let results = self.bus.backend.renew(&leases, self.options.lease).await;
        let lost = leases.iter().zip(results).filter_map(|(lease, result)| match result {
            Err(Error::LeaseLost { .. } | Error::NotFound { .. }) => Some(lease.token),
            // The server is away: the lease may still be good, the next turn tries again.
            Ok(()) | Err(_) => None,
        });
        self.lose(lost.collect());
    }

    /// Returns the leases to renew now; those held beyond `max_lease` have run out and are lost.
    fn due_for_renewal(&self, now: Instant) -> Vec<Lease> {
        let (mut due, mut over) = (Vec::new(), Vec::new());
        for held in self.state.lock().held.values() {
            let age = now.duration_since(held.since);
            if age >= self.options.max_lease + self.options.lease {
                over.push(held.lease.token);
            } else if age < self.options.max_lease && age >= self.options.lease / 4 {
                due.push(held.lease.clone());
            }
        }
        self.lose(over);
        due
    }

    /// Takes deliveries out of hand and reports them to [`Consumer::lost`].
    fn lose(&self, tokens: Vec<Token>) {
        let wakers = {
            let mut state = self.state.lock();
            for token in tokens {
                if state.held.remove(&token).is_some() {
                    self.bus.counters.leases_lost.add(1);
                    state.ready.retain(|delivery| delivery.lease.token != token);
                    state.lost.push(token);
                }
            }
            if state.lost.is_empty() { Vec::new() } else { std::mem::take(&mut state.news_wakers) }
        };
        self.freed.notify_one();
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Renews what is in hand every third of a lease, off Python's threads and locks.
async fn keep_leases(consumer: Weak<Consumer>, lease: Duration) {
    let mut turn = tokio::time::interval((lease / 3).max(Duration::from_millis(1)));
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        let Some(consumer) = consumer.upgrade() else { return };
        if consumer.is_finished() {
            return;
        }
        consumer.renew().await;
    }
}

/// Asks now and then what died by a decision of the store.
async fn gather_dead(consumer: Weak<Consumer>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(consumer) = consumer.upgrade() else { return };
        if consumer.is_stopped() {
            return;
        }
        consumer.gather_dead().await;
    }
}

/// Lets messages gather while they come one by one and fast: a claim for each costs the server more
/// than handling it, and a millisecond is little at such a rate. Rare messages never wait, nor does
/// a backlog.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    hasty: u32,
    /// Whether the last claim filled the slots: more may be there.
    full: bool,
}

impl Pace {
    /// Waits, if the last claims were too hasty.
    async fn wait(&self) {
        if self.hasty >= HASTY && !self.full {
            tokio::time::sleep(LINGER).await;
        }
    }

    /// Takes note of what a claim for `free` slots that began at `start` brought.
    fn found(&mut self, start: Instant, free: usize, count: usize) {
        let quick = self.last.is_some_and(|last| start.duration_since(last) < HASTE);
        self.last = Some(start);
        self.full = count >= free;
        self.hasty = match count {
            // Nothing gathered: not that fast any more.
            0 | 1 if self.hasty >= HASTY && !self.full => 0,
            _ if self.hasty >= HASTY || count == 0 => self.hasty,
            1 | 2 if quick && !self.full => self.hasty + 1,
            _ => 0,
        };
    }
}

/// Claims ahead while slots are free, on a broker.
async fn claim_ahead(consumer: Weak<Consumer>) {
    let mut troubles = 0;
    let mut pace = Pace::default();
    loop {
        let Some(consumer) = consumer.upgrade() else { return };
        let result = claim_once(&consumer, &mut pace).await;
        if consumer.stopped.is_cancelled() {
            return;
        }
        match result {
            Ok(()) => troubles = 0,
            Err(error) if error.is_retryable() => {
                // The backend seeks its server by itself; this only paces the questions.
                troubles = u32::min(troubles + 1, 5);
                let pause = Duration::from_millis(100) * 2_u32.pow(troubles);
                tokio::time::sleep(pause.mul_f64(rand::random())).await;
            }
            Err(error) => return consumer.fail(error),
        }
    }
}

/// Waits for free slots and claims for them; when nothing is there, waits for that. A stop ends the
/// waits, but never a claim: what it brings would be gone until its lease ends.
async fn claim_once(consumer: &Consumer, pace: &mut Pace) -> Result<()> {
    let wait = async {
        consumer.wait_free().await;
        pace.wait().await;
    };
    tokio::select! {
        () = consumer.stopped.cancelled() => return Ok(()),
        () = wait => {}
    }
    let start = Instant::now();
    let Some(claiming) = Claiming::begin(consumer) else { return Ok(()) };
    let (claimed, asked) = consumer.claim_free().await?;
    drop(claiming);
    pace.found(start, asked, claimed);
    if claimed == 0 {
        tokio::select! {
            () = consumer.stopped.cancelled() => {}
            waited = consumer.bus.backend.wait_ready(&consumer.claim) => waited?,
        }
    }
    Ok(())
}

/// A claim under way, which a release waits for.
struct Claiming<'a>(&'a Consumer);

impl<'a> Claiming<'a> {
    /// Begins one, unless the consumer was stopped.
    fn begin(consumer: &'a Consumer) -> Option<Self> {
        let mut state = consumer.state.lock();
        if state.closed {
            return None;
        }
        state.claiming = true;
        Some(Self(consumer))
    }
}

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        self.0.state.lock().claiming = false;
        self.0.settled.notify_waiters();
    }
}
