//! Where background tasks are spawned and awaited: stop intake, drain, abort.

use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks of all buses that the end of the process waits for.
static LAST: LazyLock<Mutex<TaskTracker>> = LazyLock::new(Mutex::default);

/// Waits until the last words of this process are sent, at most `grace`.
pub async fn last_words(grace: Duration) {
    let last = LAST.lock().clone();
    last.close();
    let _ = tokio::time::timeout(grace, last.wait()).await;
}

/// Forgets them in a forked child, where nobody sends them.
pub fn forget_last_words() {
    if let Some(mut last) = LAST.try_lock() {
        *last = TaskTracker::new();
    }
}

/// The background tasks of one bus.
#[derive(Debug, Clone)]
pub struct Tasks {
    handle: Handle,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Creates an empty set whose tasks run on `handle`.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self { handle, tracker: TaskTracker::new(), stop: CancellationToken::new() }
    }

    /// Spawns a task that ends when it is done or the set is stopped.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn_on(
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = task => {}
                }
            },
            &self.handle,
        );
    }

    /// Spawns a task as `spawn` does; [`last_words`] waits for it.
    pub fn spawn_last(&self, task: impl Future<Output = ()> + Send + 'static) {
        let tracked = LAST.lock().track_future(task);
        self.spawn(tracked);
    }

    /// Stops every task and waits for their end, at most `grace`. Idempotent.
    pub async fn stop(&self, grace: Duration) {
        self.stop.cancel();
        self.tracker.close();
        let _ = tokio::time::timeout(grace, self.tracker.wait()).await;
    }

    /// Asks every task to stop without waiting.
    pub fn abort(&self) {
        self.stop.cancel();
        self.tracker.close();
    }
}
