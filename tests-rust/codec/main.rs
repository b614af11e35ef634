//! The codecs against stored bytes and stored answers of CPython.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod envelope;
mod json;
mod support;
mod time;
