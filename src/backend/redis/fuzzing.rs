//! What `fuzz/` gives any bytes to: the readers of what a server answers.
#![allow(missing_docs)]

use bytes::Bytes;
use redis::Value;

use super::message;
use super::raw::first_entry;
use super::registry::{Registry, read_binding, write_binding};

/// Reads stored messages that follow one another; each takes bytes away.
///
/// # Panics
/// When one does not.
pub fn messages(bytes: &[u8]) {
    let mut rest = Bytes::copy_from_slice(bytes);
    while let Some((read, after)) = message::read(&rest) {
        assert!(after.len() < rest.len() && read.body.len() <= rest.len());
        rest = after;
    }
}

/// Reads a stored binding and writes it back.
///
/// # Panics
/// When it is not what was read.
pub fn binding(text: &str) {
    if let Some(binding) = read_binding(text) {
        assert_eq!(write_binding(&binding), text.as_bytes());
    }
}

/// Reads an answer with bindings, one text a line, and routes a topic by them.
pub fn registry(bytes: &[u8]) {
    let parts = bytes.split(|byte| *byte == b'\n');
    let answer = parts.map(|part| Value::BulkString(part.to_vec())).collect();
    if let Some(registry) = Registry::read_at_once(Value::Array(answer)) {
        let _ = (registry.targets("a:b"), registry.specs());
    }
}

/// Looks into a message of a wire that others have made.
pub fn filter(bytes: &[u8]) {
    let _ = first_entry(bytes);
}
