//! The messages of an event: finding, cancelling, promoting and rescheduling them.

use redis::{Cmd, Value};

use super::operate::{array, bytes, nonsense, number};
use super::registry::text;
use super::scripts;
use super::session::Session;
use crate::backend::{EventKey, MessageAction, MessageId, MessageInfo, MessageState, identity};
use crate::error::Result;

/// Most messages that one run of the script looks at.
const AT_ONCE: usize = 500;

/// Behind what the steps so far have looked at: a group, and the id of a message there.
#[derive(Default)]
struct Place {
    group: Vec<u8>,
    id: Vec<u8>,
}

impl Session {
    pub(super) async fn messages(
        &self,
        group: Option<&str>,
        event: EventKey,
    ) -> Result<Vec<MessageInfo>> {
        let mut found = Vec::new();
        let mut place = Place::default();
        loop {
            let copies = self.step("list", group, event, &mut place, |_| {}).await?;
            for copy in copies {
                found.push(message_info(copy)?);
            }
            if place.group.is_empty() {
                break;
            }
        }
        found.sort_by(|(a, seq_a), (b, seq_b)| (&a.group, seq_a).cmp(&(&b.group, seq_b)));
        Ok(found.into_iter().map(|(info, _)| info).collect())
    }

    pub(super) async fn act_on(
        &self,
        group: Option<&str>,
        event: EventKey,
        action: MessageAction,
    ) -> Result<u64> {
        let (name, at) = match action {
            MessageAction::Cancel => ("cancel", 0),
            MessageAction::Reschedule(at) => ("reschedule", at),
            MessageAction::Promote => ("promote", 0),
        };
        let mut changed = 0;
        let mut place = Place::default();
        loop {
            let act = |command: &mut Cmd| {
                command.arg(name).arg(at);
            };
            let mut parts = self.step("act", group, event, &mut place, act).await?;
            changed += number::<u64>(parts.next())?;
            if place.group.is_empty() {
                return Ok(changed);
            }
        }
    }

    /// Runs one step from a place, and moves the place; its group is empty at the end.
    async fn step(
        &self,
        operation: &'static str,
        group: Option<&str>,
        event: EventKey,
        place: &mut Place,
        arguments: impl FnOnce(&mut Cmd),
    ) -> Result<std::vec::IntoIter<Value>> {
        let (low, high) = identity::range(&event);
        let mut parts = self
            .operate_by(&scripts::MESSAGES, operation, group.unwrap_or_default(), |command| {
                command.arg(if group.is_some() { "one" } else { "all" });
                command.arg(&event).arg(&low).arg(&high);
                command.arg(&place.group).arg(&place.id).arg(AT_ONCE);
                arguments(command);
            })
            .await?;
        place.group = bytes(parts.next())?.into();
        place.id = bytes(parts.next())?.into();
        Ok(parts)
    }
}

/// Reads a copy, with its order of acceptance.
fn message_info(copy: Value) -> Result<(MessageInfo, String)> {
    let mut parts = array(copy)?.into_iter();
    let group = parts.next().and_then(text).ok_or_else(nonsense)?;
    let message = MessageId::try_from(&bytes(parts.next())?[..]).map_err(|_| nonsense())?;
    let seq = parts.next().and_then(text).ok_or_else(nonsense)?;
    let binding = number(parts.next())?;
    let topic = parts.next().and_then(text).ok_or_else(nonsense)?;
    let state = match parts.next().and_then(text).as_deref() {
        Some("active") => MessageState::Active,
        Some("delayed") => MessageState::Delayed,
        _ => MessageState::Ready,
    };
    let info = MessageInfo {
        group: group.into(),
        binding,
        message,
        topic: topic.into(),
        state,
        at: number(parts.next())?,
        attempts: number(parts.next())?,
        priority: number(parts.next())?,
    };
    Ok((info, seq))
}
