//! What becomes of other threads when the interpreter ends.
//!
//! Two things happen to a daemon thread that is still running then. From the exit hook on it is held
//! back where it enters the bindings, outside of any handler, and what it has begun there gets two
//! seconds to end. Later, when the interpreter refuses it the GIL, CPython before 3.14 ends it by
//! `pthread_exit`, which on glibc unwinds the stack; the frames of Rust on it would abort the process.
//! So each thread that enters the bindings registers a clean-up routine that keeps it from being
//! unwound: the thread stops there for good, as CPython 3.14 lets it do by itself.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::prelude::*;

/// How long exit waits for threads that are inside the bindings.
const GRACE: Duration = Duration::from_secs(2);
/// How long a thread is held back. A hook of `atexit` that runs after ours may wait for it: then the
/// exit is late, not stuck.
const HOLD: Duration = Duration::from_secs(5);
/// How long a thread tries to get at the list; it is held for moments only.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often exit looks again.
const LOOK: Duration = Duration::from_millis(1);

/// Set by the exit hook, before the interpreter begins to end.
static ENDING: AtomicBool = AtomicBool::new(false);
/// Every record made so far; those of ended threads are used again.
static THREADS: Mutex<Vec<&'static Thread>> = Mutex::new(Vec::new());

/// Shared by threads that call while their locals are being destroyed.
static LATE: Thread = Thread::new();

thread_local! {
    static HERE: Cell<Option<&'static Thread>> = const { Cell::new(None) };
    static UNREGISTER: Registered = const { Registered(Cell::new(None)) };
}

/// What is known of one thread.
struct Thread {
    is_used: AtomicBool,
    /// How many calls into the bindings are open; written by the thread itself only.
    depth: AtomicU32,
    /// Whether it is never held back (again): it runs the exit hook, or was held back once.
    is_free: AtomicBool,
    stop: unwinding::Stop,
}

impl Thread {
    const fn new() -> Self {
        Self {
            is_used: AtomicBool::new(true),
            depth: AtomicU32::new(0),
            is_free: AtomicBool::new(false),
            stop: unwinding::Stop::new(),
        }
    }
}

/// An open call into the bindings.
pub(crate) struct Inside {
    thread: &'static Thread,
    /// Stays on its thread.
    here: PhantomData<*const ()>,
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        let depth = self.thread.depth.load(Ordering::Relaxed);
        self.thread.depth.store(depth.wrapping_sub(1), Ordering::Relaxed);
    }
}

/// Begins a call that may run Python code; a thread that comes in while the interpreter is ending is
/// held back.
#[inline]
pub(crate) fn enter(py: Python<'_>) -> Inside {
    let thread = here();
    let depth = thread.depth.load(Ordering::Relaxed);
    if depth == 0 && ENDING.load(Ordering::Relaxed) {
        hold_back(py, thread);
    }
    thread.depth.store(depth.wrapping_add(1), Ordering::Relaxed);
    Inside { thread, here: PhantomData }
}

/// Registers this thread if it is new; for calls that run no Python code by themselves, in which the
/// GIL can change hands all the same: the collector runs where an object is made.
#[inline]
pub(crate) fn register_thread() {
    here();
}

#[inline]
fn here() -> &'static Thread {
    HERE.get().unwrap_or_else(register)
}

#[cold]
fn register() -> &'static Thread {
    let registered = UNREGISTER.try_with(|registered| {
        let thread = unused().unwrap_or_else(made);
        registered.0.set(Some(thread));
        thread.stop.arm();
        HERE.set(Some(thread));
        thread
    });
    // A thread whose locals are gone already is about to end: there is no later moment to disarm at.
    registered.unwrap_or(&LATE)
}

fn made() -> &'static Thread {
    let thread: &'static Thread = Box::leak(Box::new(Thread::new()));
    // Nobody waits for one that is not listed. In a forked child the lock may be held for ever.
    if let Some(mut threads) = THREADS.try_lock_for(PATIENCE) {
        threads.push(thread);
    }
    thread
}

/// Takes the record of a thread that ended.
fn unused() -> Option<&'static Thread> {
    let threads = THREADS.try_lock_for(PATIENCE)?;
    let found = threads.iter().find(|thread| {
        let (used, acquire) = (Ordering::Relaxed, Ordering::Acquire);
        thread.is_used.compare_exchange(false, true, acquire, used).is_ok()
    })?;
    found.depth.store(0, Ordering::Relaxed);
    found.is_free.store(false, Ordering::Relaxed);
    Some(found)
}

/// Gives the record of a thread back when the thread ends.
struct Registered(Cell<Option<&'static Thread>>);

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            HERE.set(None);
            thread.stop.disarm();
            thread.depth.store(0, Ordering::Relaxed);
            thread.is_used.store(false, Ordering::Release);
        }
    }
}

/// Keeps a thread out while the interpreter ends: it does not come back unless that takes long.
#[cold]
fn hold_back(py: Python<'_>, thread: &Thread) {
    if !thread.is_free.swap(true, Ordering::Relaxed) {
        py.detach(|| std::thread::sleep(HOLD));
    }
}

/// Stops the intake of all other threads and waits until they left the bindings, two seconds at most.
pub(crate) fn stop_intake(py: Python<'_>) {
    here().is_free.store(true, Ordering::Relaxed);
    ENDING.store(true, Ordering::Relaxed);
    let deadline = Instant::now() + GRACE;
    while anyone_inside() && Instant::now() < deadline {
        py.detach(|| std::thread::sleep(LOOK));
    }
}

fn anyone_inside() -> bool {
    let here = here();
    let threads = THREADS.lock();
    threads.iter().any(|one| !std::ptr::eq(*one, here) && one.depth.load(Ordering::Relaxed) > 0)
}

/// Whether the exit hook has run.
pub(crate) fn is_ending() -> bool {
    ENDING.load(Ordering::Relaxed)
}

/// Forgets the threads of the parent.
pub(crate) fn after_fork_in_child() {
    ENDING.store(false, Ordering::Relaxed);
    let here = here();
    here.is_free.store(false, Ordering::Relaxed);
    if let Some(threads) = THREADS.try_lock() {
        for thread in threads.iter().filter(|one| !std::ptr::eq(**one, here)) {
            thread.depth.store(0, Ordering::Relaxed);
            thread.is_used.store(false, Ordering::Release);
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod unwinding {
    //! Stops a thread that is being ended before its stack is unwound.
    //!
    //! glibc runs a clean-up routine once the unwinding has reached the stack frame in which its
    //! record lies. These records lie on the heap, outside of every stack: their routine runs before
    //! the first frame is left.
    #![allow(unsafe_code)]

    use std::cell::UnsafeCell;
    use std::ffi::{CStr, c_int, c_void};
    use std::ptr;
    use std::sync::LazyLock;

    type Routine = unsafe extern "C" fn(*mut c_void);
    type Push = unsafe extern "C" fn(*mut Record, Routine, *mut c_void);
    type Pop = unsafe extern "C" fn(*mut Record, c_int);

    /// `struct _pthread_cleanup_buffer` of <pthread.h>.
    #[repr(C)]
    struct Record {
        routine: Option<Routine>,
        argument: *mut c_void,
        cancel_type: c_int,
        previous: *mut Record,
    }

    /// The two functions, which the Linux Standard Base fixes but headers no longer declare.
    static CLEANUP: LazyLock<Option<(Push, Pop)>> = LazyLock::new(|| {
        let find = |name: &CStr| {
            // SAFETY: dlsym reads a text that ends with a null byte.
            let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        let (push, pop) = (find(c"_pthread_cleanup_push")?, find(c"_pthread_cleanup_pop")?);
        // SAFETY: both symbols have had these types since glibc 2.0.
        Some(unsafe {
            (
                std::mem::transmute::<*mut c_void, Push>(push),
                std::mem::transmute::<*mut c_void, Pop>(pop),
            )
        })
    });

    /// The clean-up record of one thread.
    pub(super) struct Stop(UnsafeCell<Record>);

    // SAFETY: only the thread that took it, and the C library in that thread, touch the record; in
    // a forked child the threads of the others are gone.
    unsafe impl Sync for Stop {}
    // SAFETY: as above; a thread gives its record back by a release store.
    unsafe impl Send for Stop {}

    impl Stop {
        pub(super) const fn new() -> Self {
            Self(UnsafeCell::new(Record {
                routine: None,
                argument: ptr::null_mut(),
                cancel_type: 0,
                previous: ptr::null_mut(),
            }))
        }

        /// Keeps the calling thread from being unwound.
        pub(super) fn arm(&self) {
            if let Some((push, _)) = *CLEANUP {
                // SAFETY: the record lives for ever, and is in no list: it was new, or disarmed, or
                // its thread is not in this process. A signal that comes meanwhile runs no clean-up.
                unsafe { push(self.0.get(), stay, ptr::null_mut()) };
            }
        }

        /// Takes the record of the calling thread back.
        pub(super) fn disarm(&self) {
            if let Some((_, pop)) = *CLEANUP {
                // SAFETY: this thread pushed it, and its stack is gone but for this destructor, so
                // nothing was pushed after it; 0 says not to run the routine.
                unsafe { pop(self.0.get(), 0) };
            }
        }
    }

    /// Keeps the thread for good when the interpreter ends it; lets any other end go on.
    unsafe extern "C" fn stay(_argument: *mut c_void) {
        while super::is_ending() {
            // SAFETY: pause takes nothing and waits for a signal; the loop goes on after each.
            unsafe { libc::pause() };
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod unwinding {
    //! Elsewhere a thread that is ended is not unwound.
    pub(super) struct Stop;

    impl Stop {
        pub(super) const fn new() -> Self {
            Self
        }

        pub(super) fn arm(&self) {}

        pub(super) fn disarm(&self) {}
    }
}
