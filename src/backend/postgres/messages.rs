//! The messages of an event: finding, cancelling, promoting and rescheduling them.

use tokio_postgres::Row;
use uuid::Uuid;

use super::calls::{self, column};
use super::claims::unsigned;
use super::live::Live;
use super::session::Argument;
use crate::backend::{EventKey, MessageAction, MessageInfo, MessageState, identity};
use crate::error::{Error, Result};

/// Most copies that one call changes or lists.
const AT_ONCE: u32 = 1_000;

/// What a step looks at: the first message of an event unless an earlier step did, and those with
/// ids above `low` up to `high`.
struct Ids {
    first: Option<Uuid>,
    low: Uuid,
    high: Uuid,
}

impl Ids {
    fn of(event: EventKey) -> Self {
        let (low, high) = identity::range(&event);
        let [first, low, high] = [event, low, high].map(Uuid::from_bytes);
        Self { first: Some(first), low, high }
    }

    /// Goes on behind an id.
    fn follow(&mut self, last: Uuid) {
        self.first = None;
        self.low = last;
    }
}

impl Live {
    pub(super) async fn messages(
        &self,
        group: Option<&str>,
        event: EventKey,
    ) -> Result<Vec<MessageInfo>> {
        let mut ids = Ids::of(event);
        let mut found: Vec<(i64, MessageInfo)> = Vec::new();
        loop {
            let arguments: [Argument<'_>; 5] =
                [&group, &ids.first, &ids.low, &ids.high, &i64::from(AT_ONCE)];
            let about = group.unwrap_or_default();
            let rows = self.pool.call(&calls::MESSAGES, &arguments, about).await?;
            let mut others = Vec::new();
            for row in &rows {
                let id = column::<Uuid>(row, 2)?;
                others.extend(Some(id).filter(|id| ids.first != Some(*id)));
                found.push((column(row, 0)?, message_info(row)?));
            }
            match others.iter().max() {
                Some(last) if others.len() >= AT_ONCE as usize => ids.follow(*last),
                _ => break,
            }
        }
        found.sort_by(|(seq, one), (other_seq, other)| {
            (&one.group, seq).cmp(&(&other.group, other_seq))
        });
        Ok(found.into_iter().map(|(_, info)| info).collect())
    }

    pub(super) async fn act_on(
        &self,
        group: Option<&str>,
        event: EventKey,
        action: MessageAction,
    ) -> Result<u64> {
        let (number, at) = match action {
            MessageAction::Cancel => (0i16, None),
            MessageAction::Reschedule(at) => (1, Some(at)),
            MessageAction::Promote => (2, None),
        };
        let mut ids = Ids::of(event);
        let mut changed = 0;
        loop {
            let arguments: [Argument<'_>; 7] =
                [&group, &ids.first, &ids.low, &ids.high, &i64::from(AT_ONCE), &number, &at];
            let about = group.unwrap_or_default();
            let rows = self.pool.call(&calls::ACT_ON, &arguments, about).await?;
            let missing = || Error::Internal { reason: "the server answered with nothing".into() };
            let row = rows.first().ok_or_else(missing)?;
            changed += u64::try_from(column::<i64>(row, 0)?).unwrap_or(0);
            match column::<Option<Uuid>>(row, 1)? {
                Some(last) => ids.follow(last),
                None => return Ok(changed),
            }
        }
    }
}

fn message_info(row: &Row) -> Result<MessageInfo> {
    Ok(MessageInfo {
        group: column::<&str>(row, 1)?.into(),
        message: column::<Uuid>(row, 2)?.into_bytes(),
        binding: unsigned(column(row, 3)?),
        topic: column::<&str>(row, 4)?.into(),
        state: match column::<i16>(row, 5)? {
            2 => MessageState::Delayed,
            3 => MessageState::Active,
            _ => MessageState::Ready,
        },
        at: column(row, 6)?,
        attempts: unsigned(column(row, 7)?),
        priority: column(row, 8)?,
    })
}
