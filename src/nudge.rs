//! A background task that whoever gives it work may poll at once, on his own thread.
//!
//! To wake a thread that sleeps costs about as much as a short request to a server on the same
//! machine. Who has handed something to a task that is idle nudges it: what the task would do next,
//! up to its next wait, happens here and now.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// Work of more bytes is left to its task, and to its thread: it would hold up whoever nudges.
const MOST_BYTES: usize = 16 << 10;
/// Most polls of one nudge; a task with still more to do is woken.
const MOST_POLLS: usize = 4;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Nobody nudges: who wakes the task wakes its thread.
const FREE: u8 = 0;
/// Somebody nudges, and looks himself.
const HELD: u8 = 1;
/// It was woken meanwhile.
const WOKEN: u8 = 2;

/// The waker of the work: it keeps quiet while somebody is about to poll the task anyway.
#[derive(Default)]
struct Gate {
    state: AtomicU8,
    /// Of the task; none before its first poll.
    task: Mutex<Option<Waker>>,
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let held = self.state.compare_exchange(HELD, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if held == Err(FREE) {
            self.wake_task();
        }
    }
}

impl Gate {
    fn wake_task(&self) {
        let task = self.task.lock().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// A nudge under way.
struct Hold<'a>(&'a Gate);

impl<'a> Hold<'a> {
    fn begin(gate: &'a Gate) -> Option<Self> {
        let was = gate.state.compare_exchange(FREE, HELD, Ordering::AcqRel, Ordering::Acquire);
        was.is_ok().then_some(Self(gate))
    }

    /// Whether the task was woken since this was asked, or since the nudge began.
    fn was_woken(&self) -> bool {
        self.0.state.swap(HELD, Ordering::AcqRel) == WOKEN
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if self.0.state.swap(FREE, Ordering::AcqRel) == WOKEN {
            self.0.wake_task();
        }
    }
}

/// Whether the task last found more than one piece of work. It will soon again, and gathers best
/// when nobody polls it early.
#[derive(Clone, Debug, Default)]
pub struct Crowd(Arc<AtomicBool>);

impl Crowd {
    /// Told by the task: how many pieces of work it found at once.
    pub fn found(&self, pieces: usize) {
        self.0.store(pieces > 1, Ordering::Relaxed);
    }

    fn is_here(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Polls a background task. Cheap to clone.
#[derive(Clone, Default)]
pub struct Nudge {
    work: Arc<Mutex<Option<Work>>>,
    gate: Arc<Gate>,
    asking: Arc<AtomicUsize>,
    crowd: Crowd,
}

impl std::fmt::Debug for Nudge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nudge")
    }
}

/// Ends the work with the task, whoever may still nudge it.
struct Task(Nudge);

impl Drop for Task {
    fn drop(&mut self) {
        let work = self.0.work.lock().take();
        drop(work);
    }
}

impl Nudge {
    /// Returns a nudge and the task to spawn; dropping the task drops the work. Work that gathers
    /// says what it found.
    pub fn around<W: Future<Output = ()> + Send + 'static>(
        work: impl FnOnce(Crowd) -> W,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let nudge = Self::default();
        *nudge.work.lock() = Some(Box::pin(work(nudge.crowd.clone())));
        let task = Task(nudge.clone());
        let run = std::future::poll_fn(move |context| {
            let mut waker = task.0.gate.task.lock();
            if waker.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
            drop(waker);
            task.0.poll(&mut task.0.work.lock())
        });
        (nudge, run)
    }

    /// Waits for an answer from the task. Who waits alone, with few bytes, does what the task would
    /// do next instead of waking it; who comes while others wait leaves it to gather more. Needs the
    /// runtime of the task as context. Cancel safe if the question is.
    pub async fn ask<T>(&self, bytes: usize, question: impl Future<Output = T>) -> T {
        let _asking = Asking::begin(&self.asking);
        let mut alone = bytes <= MOST_BYTES
            && !self.crowd.is_here()
            && self.asking.load(Ordering::Relaxed) == 1;
        let mut question = pin!(question);
        std::future::poll_fn(|context| {
            if !std::mem::take(&mut alone) {
                return question.as_mut().poll(context);
            }
            let hold = Hold::begin(&self.gate);
            let polled = question.as_mut().poll(context);
            if let Some(hold) = hold.filter(|_| polled.is_pending()) {
                self.push(&hold);
            }
            polled
        })
        .await
    }

    /// Polls the task while it is woken, unless it is being polled.
    fn push(&self, hold: &Hold<'_>) {
        let Some(mut work) = self.work.try_lock() else { return };
        for _ in 0..MOST_POLLS {
            if !hold.was_woken() {
                return;
            }
            if self.poll(&mut work).is_ready() {
                return self.gate.wake_task();
            }
        }
    }

    fn poll(&self, work: &mut Option<Work>) -> Poll<()> {
        let Some(running) = work else { return Poll::Ready(()) };
        let waker = Waker::from(Arc::clone(&self.gate));
        let polled = running.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            *work = None;
        }
        polled
    }
}

struct Asking<'a>(&'a AtomicUsize);

impl<'a> Asking<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use tokio::sync::mpsc;

    use super::*;

    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// A task that doubles numbers, polled by hand.
    struct Doubling {
        nudge: Nudge,
        question: mpsc::Sender<u32>,
        answers: mpsc::Receiver<u32>,
        task: Pin<Box<dyn Future<Output = ()> + Send>>,
        woken: Arc<Flag>,
    }

    impl Doubling {
        fn new() -> Self {
            let (question, mut asked) = mpsc::channel(8);
            let (answer, answers) = mpsc::channel(8);
            let (nudge, task) = Nudge::around(|crowd| async move {
                while let Some(number) = asked.recv().await {
                    crowd.found(1 + asked.len());
                    let _ = answer.try_send(number * 2);
                }
            });
            let woken = Arc::new(Flag(AtomicBool::new(false)));
            let mut doubling = Self { nudge, question, answers, task: Box::pin(task), woken };
            assert!(doubling.poll().is_pending());
            doubling
        }

        fn poll(&mut self) -> Poll<()> {
            self.woken.0.store(false, Ordering::Relaxed);
            let waker = Waker::from(Arc::clone(&self.woken));
            self.task.as_mut().poll(&mut Context::from_waker(&waker))
        }

        fn is_woken(&self) -> bool {
            self.woken.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn who_asks_alone_wakes_nobody() {
        let mut one = Doubling::new();
        let answers = &mut one.answers;
        let asked = async {
            one.question.send(4).await.unwrap();
            answers.recv().await
        };
        // Nobody runs the task.
        assert_eq!(one.nudge.ask(0, asked).await, Some(8));
        assert!(!one.is_woken());
    }

    #[tokio::test]
    async fn who_brings_much_wakes_the_task() {
        let mut one = Doubling::new();
        let asked = async {
            one.question.send(4).await.unwrap();
            std::future::pending::<()>().await;
        };
        let mut context = Context::from_waker(Waker::noop());
        assert!(pin!(one.nudge.ask(MOST_BYTES + 1, asked)).poll(&mut context).is_pending());
        assert!(one.is_woken());
        assert!(one.answers.try_recv().is_err());
        assert!(one.poll().is_pending());
        assert_eq!(one.answers.try_recv(), Ok(8));
    }

    #[tokio::test]
    async fn a_task_that_found_more_is_left_alone_to_gather() {
        let mut one = Doubling::new();
        for number in [1, 2] {
            one.question.send(number).await.unwrap();
        }
        assert!(one.poll().is_pending());
        // It found one piece of work last, after a crowd of two.
        assert_eq!([one.answers.try_recv(), one.answers.try_recv()], [Ok(2), Ok(4)]);
        let answers = &mut one.answers;
        let asked = async {
            one.question.send(3).await.unwrap();
            answers.recv().await
        };
        assert_eq!(one.nudge.ask(0, asked).await, Some(6));
        one.nudge.crowd.found(2);
        let asked = async {
            one.question.send(4).await.unwrap();
            std::future::pending::<()>().await;
        };
        let mut context = Context::from_waker(Waker::noop());
        assert!(pin!(one.nudge.ask(0, asked)).poll(&mut context).is_pending());
        assert!(one.answers.try_recv().is_err());
    }

    #[tokio::test]
    async fn what_is_asked_without_an_answer_wakes_the_task() {
        let one = Doubling::new();
        // Ready at its first poll: there was no need to wait, so nobody polls the task.
        one.nudge.ask(0, async { one.question.try_send(4) }).await.unwrap();
        assert!(one.is_woken());
    }

    #[tokio::test]
    async fn who_is_not_alone_leaves_it_to_the_task() {
        let mut one = Doubling::new();
        let mut first = Box::pin(one.nudge.ask(0, std::future::pending::<()>()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(&mut context).is_pending());
        let second = one.nudge.ask(0, async {
            one.question.send(4).await.unwrap();
            std::future::pending::<()>().await;
        });
        assert!(pin!(second).poll(&mut context).is_pending());
        drop(first);
        assert!(one.is_woken());
        assert!(one.answers.try_recv().is_err());
    }

    #[test]
    fn a_dropped_task_drops_its_work() {
        let one = Doubling::new();
        drop(one.task);
        assert!(one.question.is_closed());
    }

    #[tokio::test]
    async fn the_task_ends_when_a_nudge_ends_its_work() {
        let mut one = Doubling::new();
        let (question, task) = (one.question, &mut one.task);
        let ended = async {
            drop(question);
            task.await;
        };
        one.nudge.ask(0, ended).await;
    }
}
