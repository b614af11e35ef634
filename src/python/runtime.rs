//! The runtime the module owns: made when first needed, ended at exit, dead after a fork.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};

use super::exit;
use crate::error::{Error, Result};
use crate::shutdown::{forget_last_words, last_words};

/// How long exit waits for tasks that are still running.
const EXIT_GRACE: Duration = Duration::from_secs(2);

/// How long exit waits for the last settlements to reach their server.
const LAST_GRACE: Duration = Duration::from_secs(2);

/// Counts forks seen by this process; objects remember the count of their making.
static FORKS: AtomicU32 = AtomicU32::new(0);
static RUNTIME: Mutex<State> = Mutex::new(State::Unused);

enum State {
    Unused,
    Running(Arc<Runtime>),
    Ended,
}

/// Remembers in which process an object was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    forks: u32,
    pid: u32,
}

impl Origin {
    /// Returns the current process.
    pub(crate) fn here() -> Self {
        Self { forks: FORKS.load(Ordering::Relaxed), pid: std::process::id() }
    }

    /// Fails in a child that was forked after the object was made.
    pub(crate) fn check(self) -> Result<()> {
        if self.forks == FORKS.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Error::Forked { made_in: self.pid, used_in: std::process::id() })
    }
}

/// Returns how many forks this process has behind it.
pub(crate) fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Returns the runtime, starting it on first use.
pub(crate) fn runtime() -> Result<Arc<Runtime>> {
    let mut state = RUNTIME.lock();
    match &*state {
        State::Running(runtime) => Ok(Arc::clone(runtime)),
        State::Ended => Err(Error::Closed { what: "the eventbus runtime (interpreter exit)" }),
        State::Unused => {
            let runtime = Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("eventbus")
                .enable_all()
                .build()
                .map_err(|error| Error::Internal { reason: format!("no runtime: {error}") })?;
            let runtime = Arc::new(runtime);
            *state = State::Running(Arc::clone(&runtime));
            Ok(runtime)
        }
    }
}

/// Ends the runtime; registered with `atexit`, so that no thread of ours outlives the interpreter.
#[pyfunction(name = "_shutdown")]
pub(crate) fn shutdown(py: Python<'_>) {
    exit::stop_intake(py);
    let state = std::mem::replace(&mut *RUNTIME.lock(), State::Ended);
    if let State::Running(runtime) = state {
        // Settlements without a waiting caller: a handler has raised `SystemExit`, or a loop has ended.
        py.detach(|| runtime.block_on(last_words(LAST_GRACE)));
        py.detach(|| match Arc::try_unwrap(runtime) {
            Ok(runtime) => runtime.shutdown_timeout(EXIT_GRACE),
            // A bus still holds it: its tasks never touch Python, so leaking it is safe.
            Err(runtime) => std::mem::forget(runtime),
        });
    }
}

/// Marks everything made so far as dead; registered with `os.register_at_fork`.
#[pyfunction(name = "_after_fork_in_child")]
pub(crate) fn after_fork_in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    exit::after_fork_in_child();
    forget_last_words();
    // The threads of the parent's runtime do not exist here, and its lock may have been held by one
    // of them at the fork: forget the runtime without locking when that is so.
    if let Some(mut state) = RUNTIME.try_lock()
        && let State::Running(runtime) = std::mem::replace(&mut *state, State::Unused)
    {
        std::mem::forget(runtime);
    }
}
