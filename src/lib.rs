//! eventbus: broadcast, durable queues, records and one atomic commit.
//!
//! The map of the core, in the order in which things depend on each other:
//!
//! - [`error`]: every failure of the core, and what a caller can do about it
//! - [`topic`]: topics, `fnmatch` patterns, and the index from a topic to what matches it
//! - [`event`]: the immutable event, a plain value
//! - [`codec`]: event ⇄ bytes: the native msgpack envelope and the DataKnobs JSON wire, with limits
//! - [`signing`]: signatures of frames and notifications, with keys derived from secrets
//! - [`retry`]: failed attempt → delay or dead letter
//! - [`config`]: options, their defaults and units
//! - [`net`]: streams to servers, with TLS
//! - [`guard`]: limits on what a server can make this process hold
//! - [`nudge`]: background tasks that the thread with work for them may poll
//! - [`clock`]: the time source that tests can turn by hand
//! - [`backend`]: the contract that every backend fulfils, and the backends themselves
//! - [`bus`]: validation, consumers, the lease keeper, bounded buffers with gap notices
//! - [`ring`]: the bounded buffer with gap notices
//! - [`shutdown`]: where background tasks are spawned and awaited
//! - [`telemetry`]: the counters of a bus
//! - `python` (feature `python`): the bindings; extract, call the core, convert
#![cfg_attr(not(feature = "python"), forbid(unsafe_code))]

pub mod backend;
pub mod bus;
pub mod clock;
pub mod codec;
pub mod config;
pub mod error;
pub mod event;
pub mod guard;
pub mod net;
pub mod nudge;
pub mod retry;
pub mod ring;
pub mod shutdown;
pub mod signing;
pub mod telemetry;
pub mod topic;

#[cfg(feature = "python")]
mod python;

pub use error::{Error, Result};
