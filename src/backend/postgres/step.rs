//! One step of a transaction, in the form that the server takes.

use std::borrow::Cow;
use std::time::Duration;

use uuid::Uuid;

use super::micros;
use super::wire::Packer;
use crate::backend::{DeadReason, Due, Lease, Message, Outcome, cut_error};

/// One step of a whole transaction; what does not apply is none.
#[derive(Debug, Default)]
pub(super) struct Step<'a> {
    pub(super) tx: i32,
    pub(super) kind: i16,
    pub(super) id: Option<Uuid>,
    pub(super) name: Option<&'a str>,
    pub(super) body: Option<&'a [u8]>,
    pub(super) key: Option<&'a str>,
    pub(super) unique: Option<&'a str>,
    pub(super) dedup: Option<&'a str>,
    pub(super) error: Option<Cow<'a, str>>,
    /// The priority of a publish, the reason of a death.
    pub(super) priority: Option<i16>,
    /// The token of a settle, the expected version of a record.
    pub(super) number: Option<i64>,
    pub(super) group: Option<i32>,
    pub(super) binding: Option<i32>,
    pub(super) outcome: Option<i16>,
    pub(super) after: Option<i64>,
    pub(super) due: Option<i64>,
    pub(super) ttl: Option<i64>,
    pub(super) first: i32,
    pub(super) count: i32,
    pub(super) notify: Option<String>,
    pub(super) large: Option<Uuid>,
    /// The event of a broadcast that is to be kept.
    pub(super) event: Option<Uuid>,
}

/// Returns the step of a publish; what subscribers get is packed by itself.
pub(super) fn publish<'a>(message: &'a Message, packer: &mut Packer) -> Step<'a> {
    let (mut large, mut notify) = (None, None);
    if message.is_heard() {
        let sent = if packer.fits(&message.topic, &message.body) {
            packer.inline(&message.topic, &message.body)
        } else {
            let id = Uuid::new_v4();
            large = Some(id);
            packer.stored(&message.topic, id)
        };
        notify = packer.take().or(sent);
    }
    let (after, due) = due(message);
    Step {
        kind: 0,
        id: Some(Uuid::from_bytes(message.id)),
        name: Some(&message.topic),
        body: Some(&message.body),
        key: message.key.as_deref(),
        unique: message.unique.as_deref(),
        dedup: message.dedup_id.as_deref(),
        priority: Some(message.priority),
        after,
        due,
        ttl: message.expires_after.map(micros),
        notify,
        large,
        event: message.is_heard().then(|| Uuid::from_bytes(message.event)),
        ..Step::default()
    }
}

/// Returns the step that writes a record, or deletes it.
pub(super) fn record<'a>(
    key: &'a str,
    value: Option<&'a [u8]>,
    if_version: Option<u64>,
    ttl: Option<Duration>,
) -> Step<'a> {
    Step {
        kind: if value.is_some() { 2 } else { 3 },
        name: Some(key),
        body: value,
        number: if_version.map(signed),
        ttl: ttl.map(micros),
        ..Step::default()
    }
}

pub(super) fn settle<'a>(lease: &'a Lease, outcome: &'a Outcome, group: Option<i32>) -> Step<'a> {
    let step = Step {
        kind: 1,
        id: Some(Uuid::from_bytes(lease.message)),
        number: Some(signed(lease.token)),
        group,
        binding: Some(i32::try_from(lease.binding).unwrap_or(-1)),
        ..Step::default()
    };
    match outcome {
        Outcome::Ack => Step { outcome: Some(0), ..step },
        Outcome::Retry { after, error } => {
            Step { outcome: Some(1), after: Some(micros(*after)), error: storable(error), ..step }
        }
        Outcome::Dead { reason, error } => Step {
            outcome: Some(2),
            priority: reason_number(*reason),
            error: storable(error),
            ..step
        },
        Outcome::Release => Step { outcome: Some(3), ..step },
        Outcome::Crash => Step { outcome: Some(5), ..step },
        Outcome::Defer { after } => Step { outcome: Some(4), after: Some(micros(*after)), ..step },
    }
}

/// Cuts an error's text, and shows the one character that Postgres keeps in no text.
fn storable(error: &str) -> Option<Cow<'_, str>> {
    let fits = error.len() <= crate::backend::MAX_ERROR_BYTES && !error.contains('\0');
    Some(if fits { error.into() } else { cut_error(error.replace('\0', "\u{2400}")).into() })
}

/// The reasons by the numbers they are stored as.
const REASONS: [DeadReason; 7] = [
    DeadReason::Failed,
    DeadReason::Rejected,
    DeadReason::Crashed,
    DeadReason::Undecodable,
    DeadReason::UnknownTask,
    DeadReason::Expired,
    DeadReason::Unsigned,
];

fn reason_number(reason: DeadReason) -> Option<i16> {
    let number = REASONS.iter().position(|one| *one == reason);
    number.and_then(|number| number.try_into().ok())
}

/// Returns the reason that a number stands for; one of a newer version says the least.
pub(super) fn reason(number: i16) -> DeadReason {
    let known = usize::try_from(number).ok().and_then(|number| REASONS.get(number));
    known.copied().unwrap_or(DeadReason::Rejected)
}

/// Returns the delay and the time of a message that is not due now.
pub(super) fn due(message: &Message) -> (Option<i64>, Option<i64>) {
    match message.due {
        Due::Now => (None, None),
        Due::After(delay) => (Some(micros(delay)), None),
        Due::At(at) => (None, Some(at)),
    }
}

/// No token or version is beyond the server's integers, so one that is equals none of them.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
