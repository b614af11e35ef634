//! A background task that whoever gives it work may poll at once, on his own thread.
//!
//! To wake a thread that sleeps costs about as much as a short request to a server on the same
//! machine. Who has handed something to a task that is idle nudges it: what the task would do next,
//! up to its next wait, happens here and now.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Work of more bytes is left to its task, and to its thread: it would hold up whoever nudges.
pub const MOST_BYTES: usize = 16 << 10;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
struct State {
    work: Option<Work>,
    /// Of the task that polls it usually; none before its first poll.
    waker: Option<Waker>,
}

/// Polls a background task. Cheap to clone.
#[derive(Clone, Default)]
pub struct Nudge {
    state: Arc<Mutex<State>>,
    asking: Arc<AtomicUsize>,
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
        let state = std::mem::take(&mut *self.0.state.lock());
        drop(state);
    }
}

impl Nudge {
    /// Returns a nudge and the task to spawn; dropping the task drops the work.
    pub fn around(
        work: impl Future<Output = ()> + Send + 'static,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let nudge = Self::default();
        nudge.state.lock().work = Some(Box::pin(work));
        let task = Task(nudge.clone());
        let run = std::future::poll_fn(move |context| {
            let mut state = task.0.state.lock();
            if state.waker.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
                state.waker = Some(context.waker().clone());
            }
            state.poll(context)
        });
        (nudge, run)
    }

    /// Polls the task once, unless it is being polled. Needs the runtime of the task as context.
    pub fn push(&self) {
        let Some(mut state) = self.state.try_lock() else { return };
        let Some(waker) = state.waker.clone() else { return };
        if state.poll(&mut Context::from_waker(&waker)).is_ready() {
            waker.wake();
        }
    }

    /// Waits for an answer from the task; nudges it when nobody else waits for one. Who comes while
    /// the task is busy leaves it to gather more.
    pub async fn ask<T>(&self, question: impl Future<Output = T>) -> T {
        let _asking = Asking::begin(&self.asking);
        let alone = self.asking.load(Ordering::Relaxed) == 1;
        let mut question = pin!(question);
        let mut first = true;
        std::future::poll_fn(|context| {
            let polled = question.as_mut().poll(context);
            if polled.is_pending() && std::mem::take(&mut first) && alone {
                self.push();
            }
            polled
        })
        .await
    }
}

impl State {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(work) = &mut self.work else { return Poll::Ready(()) };
        let polled = work.as_mut().poll(context);
        if polled.is_ready() {
            self.work = None;
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
    use tokio::sync::mpsc;

    use super::*;

    /// Doubles numbers; the first poll of the task is done when this returns.
    async fn doubling() -> (Nudge, mpsc::Sender<u32>, mpsc::Receiver<u32>, impl Future<Output = ()>)
    {
        let (question, mut asked) = mpsc::channel(8);
        let (answer, answers) = mpsc::channel(8);
        let (nudge, task) = Nudge::around(async move {
            while let Some(number) = asked.recv().await {
                let _ = answer.try_send(number * 2);
            }
        });
        let mut task = Box::pin(task);
        assert!(
            std::future::poll_fn(|context| Poll::Ready(task.as_mut().poll(context)))
                .await
                .is_pending()
        );
        (nudge, question, answers, task)
    }

    #[tokio::test]
    async fn a_push_does_what_the_task_would_do_next() {
        let (nudge, question, mut answers, task) = doubling().await;
        question.try_send(21).unwrap();
        assert!(answers.try_recv().is_err());
        nudge.push();
        assert_eq!(answers.try_recv(), Ok(42));
        drop(task);
    }

    #[tokio::test]
    async fn who_asks_alone_needs_no_other_thread() {
        let (nudge, question, mut answers, task) = doubling().await;
        let sending = async {
            question.send(4).await.unwrap();
            answers.recv().await
        };
        // Nobody runs the task.
        assert_eq!(nudge.ask(sending).await, Some(8));
        drop(task);
    }

    #[tokio::test]
    async fn a_dropped_task_drops_its_work() {
        let (nudge, question, _answers, task) = doubling().await;
        drop(task);
        nudge.push();
        assert!(question.is_closed());
    }

    #[tokio::test]
    async fn the_task_ends_when_a_push_ends_its_work() {
        let (nudge, question, _answers, task) = doubling().await;
        let running = tokio::spawn(task);
        tokio::task::yield_now().await;
        drop(question);
        nudge.push();
        running.await.unwrap();
    }
}
