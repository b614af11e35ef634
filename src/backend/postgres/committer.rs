//! The task that commits: it takes whatever came while the previous parcel was on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::calls;
use super::fault::Fault;
use super::link::{LONGEST_PAUSE, Link, pause_before};
use super::parcel::{Item, Parcel};
use super::pool::Pool;
use super::registry::{Cache, Registry};
use super::send::Sender;
use super::session::Session;
use super::wake::Wakes;
use super::wire::Style;
use crate::backend::{Committed, Op, Transaction};
use crate::error::{Error, Result};
use crate::nudge::{Crowd, Nudge};

/// What may wait to be committed, in units of 1 KiB or one transaction: 64 MiB.
const BUFFER: u32 = 65_536;
/// How often in a row a parcel may be refused for an old registry at once, and the pause beyond that.
const OFTEN_STALE: u32 = 5;
const STALE_PAUSE: Duration = Duration::from_millis(20);
/// Most calls that are taken at once.
const MOST_CALLS: usize = 4_096;

/// One call of `commit`.
#[derive(Debug)]
struct Job {
    transactions: Vec<Transaction>,
    reply: oneshot::Sender<Vec<Result<Committed>>>,
    deadline: Instant,
    /// Whether any of it may have reached the server.
    sent: Arc<AtomicBool>,
    _room: OwnedSemaphorePermit,
}

/// What the committer shares with the rest of the backend.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) link: Arc<Link>,
    pub(super) pool: Arc<Pool>,
    pub(super) registry: Arc<Cache>,
    pub(super) wakes: Arc<Wakes>,
    /// Messages that were broadcast without writing anything, and are not counted yet.
    pub(super) published: Arc<AtomicI64>,
    /// Copies that were published or settled since the table was last looked at.
    pub(super) moved: Arc<AtomicI64>,
    pub(super) dedup_window: i64,
    /// How broadcasts go out.
    pub(super) style: Style,
}

/// Where calls of `commit` are handed in.
#[derive(Debug)]
pub(super) struct Inbox {
    jobs: mpsc::UnboundedSender<Job>,
    room: Arc<Semaphore>,
    link: Arc<Link>,
    nudge: Nudge,
}

impl Inbox {
    /// Starts a committer.
    pub(super) fn open(desk: Desk) -> Self {
        let (jobs, received) = mpsc::unbounded_channel();
        let link = Arc::clone(&desk.link);
        let sender = Sender { producer: Uuid::new_v4(), dedup_window: desk.dedup_window };
        let committer = Committer { desk, sender, number: 0, session: None };
        let (nudge, task) = Nudge::around(move |crowd| committer.run(received, crowd));
        link.tasks.spawn(task);
        // The channel has no bound of its own: every job holds a part of the room.
        let room = Arc::new(Semaphore::new(BUFFER as usize));
        Self { jobs, room, link, nudge }
    }

    /// Commits transactions; one result each.
    pub(super) async fn commit(&self, transactions: Vec<Transaction>) -> Vec<Result<Committed>> {
        let count = transactions.len();
        let failed = |error: Error| vec![Err(error); count];
        let deadline = Instant::now() + self.link.op_timeout;
        let bytes: usize = transactions.iter().map(Transaction::weight).sum();
        let units = count + bytes / 1024;
        let units = u32::try_from(units).unwrap_or(BUFFER).min(BUFFER);
        let room = Arc::clone(&self.room).acquire_many_owned(units);
        let room = match tokio::time::timeout_at(deadline, room).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return failed(super::closed()),
            Err(_) => return failed(self.link.timeout("commit", false)),
        };
        let (reply, answer) = oneshot::channel();
        let sent = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&sent);
        let job = Job { transactions, reply, deadline, sent, _room: room };
        // The committer ends a parcel at the deadline too, and knows better what became of it.
        let grace = deadline + Duration::from_millis(250);
        let asked = async {
            if self.jobs.send(job).is_err() {
                return Ok(Ok(failed(super::closed())));
            }
            tokio::time::timeout_at(grace, answer).await
        };
        match self.nudge.ask(bytes, asked).await {
            Ok(Ok(results)) => results,
            Ok(Err(_)) => failed(super::closed()),
            Err(_) => failed(self.link.timeout("commit", seen.load(Ordering::Relaxed))),
        }
    }
}

#[derive(Debug)]
struct Committer {
    desk: Desk,
    sender: Sender,
    /// The number of the last parcel.
    number: u64,
    session: Option<Box<Session>>,
}

impl Committer {
    async fn run(mut self, mut received: mpsc::UnboundedReceiver<Job>, crowd: Crowd) {
        let mut jobs = Vec::new();
        while received.recv_many(&mut jobs, MOST_CALLS).await > 0 {
            // A call that nobody waits for any more was not sent, and will not be.
            jobs.retain(|job: &Job| !job.reply.is_closed());
            crowd.found(jobs.len());
            let results = self.commit(&jobs).await;
            for (job, results) in jobs.drain(..).zip(results) {
                // Who gave up waiting was told so.
                let _ = job.reply.send(results);
            }
        }
    }

    async fn commit(&mut self, jobs: &[Job]) -> Vec<Vec<Result<Committed>>> {
        let items: Vec<Item<'_>> = jobs
            .iter()
            .enumerate()
            .flat_map(|(call, job)| {
                job.transactions.iter().map(move |transaction| Item { call, transaction })
            })
            .collect();
        let mut results: Vec<Vec<_>> = jobs.iter().map(|_| Vec::new()).collect();
        let mut done = 0;
        while let Some(rest) = items.get(done..).filter(|rest| !rest.is_empty()) {
            let deadline =
                rest.iter().filter_map(|item| jobs.get(item.call)).map(|job| job.deadline);
            let deadline = deadline.max().unwrap_or_else(Instant::now);
            let answers = self.parcel(rest, jobs, deadline).await;
            let taken = answers.len().max(1);
            for (item, answer) in rest.iter().zip(answers) {
                if let Some(results) = results.get_mut(item.call) {
                    results.push(answer);
                }
            }
            done += taken;
        }
        results
    }

    /// Commits the first of the items, as many as make one parcel.
    async fn parcel(
        &mut self,
        items: &[Item<'_>],
        jobs: &[Job],
        deadline: Instant,
    ) -> Vec<Result<Committed>> {
        let (count, failure) = match self.deliver(items, jobs, deadline).await {
            Ok(answers) => return answers,
            Err(failed) => failed,
        };
        let isolate = count > 1 && matches!(failure, Error::Internal { .. });
        if !isolate {
            return vec![Err(failure); count];
        }
        // One of them is to blame; the others shall not suffer for it.
        let mut answers = Vec::with_capacity(count);
        for item in items.iter().take(count) {
            let alone = self.deliver(std::slice::from_ref(item), jobs, deadline).await;
            answers.extend(alone.unwrap_or_else(|(_, error)| vec![Err(error)]));
        }
        answers
    }

    /// Sends one parcel until it is answered; an error comes with the number of its transactions.
    async fn deliver(
        &mut self,
        items: &[Item<'_>],
        jobs: &[Job],
        deadline: Instant,
    ) -> Result<Vec<Result<Committed>>, (usize, Error)> {
        self.number += 1;
        let mut registry = self.desk.registry.get();
        if !knows_groups(items, &registry) {
            registry = self.refresh().await.map_err(|error| (items.len(), error))?;
        }
        let (mut attempt, mut stale) = (0, 0);
        // Whether the server may have done it although it did not say so.
        let mut unknown = false;
        // Why it did not, the last time that it said so.
        let mut refusal: Option<Error> = None;
        loop {
            let (producer, style) = (self.sender.producer, &self.desk.style);
            let parcel = Parcel::build(items, &registry, producer, self.number, style);
            let count = parcel.len();
            if parcel.is_empty() && !parcel.routes {
                return parcel.results(&[], &[], &registry).map_err(|error| (count, error));
            }
            let fault = match self.send(&parcel, &items[..count], jobs, &registry, deadline).await {
                Ok(answer) => {
                    if self.desk.link.is_pooled() {
                        let acked = parcel.acks.iter().map(|(group, _)| *group);
                        let groups: Vec<_> = parcel.touched().into_iter().chain(acked).collect();
                        self.desk.wakes.wake(&groups);
                    }
                    let (lost, results) = answer;
                    return parcel
                        .results(&lost, &results, &registry)
                        .map_err(|error| (count, error));
                }
                Err(fault) => fault,
            };
            let failure = match fault {
                Fault::Stale if Instant::now() < deadline => {
                    stale += 1;
                    if stale > OFTEN_STALE {
                        // Not declarations any more: somebody may hold the lock of the version.
                        tokio::time::sleep(STALE_PAUSE).await;
                    }
                    registry = self.refresh().await.map_err(|error| (count, error))?;
                    continue;
                }
                Fault::Lost(said) => {
                    self.session = None;
                    unknown = true;
                    self.desk.link.connector.failed(&said)
                }
                Fault::Again(said) => refusal.insert(self.desk.link.interrupted(said)).clone(),
                Fault::ReadOnly(error) => {
                    self.session = None;
                    refusal.insert(error).clone()
                }
                // The server was lost while it had the parcel, and did not come back in time.
                Fault::Final(Error::Connect { .. }) if unknown => {
                    return Err((count, self.desk.link.timeout("commit", true)));
                }
                // There was no time for another connection.
                Fault::Final(error @ Error::Connect { .. }) if refusal.is_some() => {
                    return Err((count, refusal.unwrap_or(error)));
                }
                Fault::Final(error) => {
                    if matches!(error, Error::Timeout { .. }) {
                        self.session = None;
                    }
                    return Err((count, error));
                }
                Fault::Stale => return Err((count, self.desk.link.timeout("commit", false))),
                Fault::Full(_) | Fault::NoGroup => {
                    let reason = "a commit was refused as a whole".into();
                    return Err((count, Error::Internal { reason }));
                }
            };
            // At once at first: mostly a connection was lost while it was idle.
            let Some(pause) = pause_before(deadline, attempt, LONGEST_PAUSE) else {
                self.desk.link.note(&failure.to_string());
                let late = || self.desk.link.timeout("commit", true);
                return Err((count, if unknown { late() } else { failure }));
            };
            attempt += 1;
            tokio::time::sleep(pause).await;
        }
    }

    async fn refresh(&self) -> Result<Arc<Registry>> {
        self.desk.registry.refresh(&self.desk.pool).await
    }

    async fn send(
        &mut self,
        parcel: &Parcel<'_>,
        items: &[Item<'_>],
        jobs: &[Job],
        registry: &Registry,
        deadline: Instant,
    ) -> Result<(Vec<i32>, Vec<i64>), Fault> {
        let session = match self.session.take().filter(|session| session.is_usable()) {
            Some(session) => session,
            None => {
                let opened = self.desk.link.open_by(deadline).await;
                Box::new(opened.map_err(Fault::Final)?)
            }
        };
        for job in items.iter().filter_map(|item| jobs.get(item.call)) {
            job.sent.store(true, Ordering::Relaxed);
        }
        let quiet = parcel.only_notifies();
        let before = if quiet { 0 } else { self.desk.published.swap(0, Ordering::Relaxed) };
        let counted = if quiet { 0 } else { before + parcel.published };
        let to = (&self.desk.link, &*session);
        let sent = parcel.send(to, (self.sender, self.number), registry, counted, deadline).await;
        self.session = Some(session);
        let rows = sent.inspect_err(|_| {
            self.desk.published.fetch_add(before, Ordering::Relaxed);
        })?;
        if quiet {
            self.desk.published.fetch_add(parcel.published, Ordering::Relaxed);
            return Ok((Vec::new(), Vec::new()));
        }
        let moved = parcel.copies.len() + parcel.acks.len() + parcel.steps.len();
        self.desk.moved.fetch_add(i64::try_from(moved).unwrap_or(0), Ordering::Relaxed);
        read(&rows).map_err(Fault::Final)
    }
}

fn read(rows: &[tokio_postgres::Row]) -> Result<(Vec<i32>, Vec<i64>)> {
    let missing = || Error::Internal { reason: "the server answered a commit with nothing".into() };
    let row = rows.first().ok_or_else(missing)?;
    Ok((calls::column(row, 0)?, calls::column(row, 1)?))
}

/// Whether every group that something is settled in is known.
fn knows_groups(items: &[Item<'_>], registry: &Registry) -> bool {
    let ops = items.iter().flat_map(|item| &item.transaction.ops);
    ops.into_iter().all(|op| match op {
        Op::Settle(lease, _) => registry.id(&lease.group).is_some(),
        _ => true,
    })
}
