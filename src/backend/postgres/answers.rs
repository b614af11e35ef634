//! The server's answer to a parcel, read transaction by transaction.

use super::registry::Registry;
use crate::backend::{Accepted, Committed, Op, Transaction};
use crate::error::{Error, Result};

/// Reads the figures of whole transactions one after the other.
pub(super) struct Answers<'s, 'a> {
    pub(super) rest: &'s [i64],
    /// Every step sent.
    pub(super) ops: &'s [&'a Op],
    pub(super) registry: &'s Registry,
}

impl Answers<'_, '_> {
    fn take(&mut self) -> Option<i64> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn failed_op(&mut self) -> Option<&Op> {
        let step = usize::try_from(self.take()?).ok()?;
        self.ops.get(step.checked_sub(1)?).copied()
    }

    /// Reads the next answer; `None` when it is not understood.
    pub(super) fn next(&mut self, transaction: &Transaction) -> Option<Result<Committed>> {
        match self.take()? {
            0 => self.committed(transaction).map(Ok),
            2 => match self.failed_op()? {
                Op::Settle(lease, _) => Some(Err(lease.lost())),
                _ => None,
            },
            3 => {
                let op = self.failed_op()?.clone();
                let actual = u64::try_from(self.take()?).ok()?;
                let (Op::Put { key, if_version, .. } | Op::Delete { key, if_version }) = op else {
                    return None;
                };
                let key = key.as_ref().to_owned();
                Some(Err(Error::VersionConflict { key, expected: if_version?, actual }))
            }
            4 => {
                self.take()?;
                let group = i32::try_from(self.take()?).ok()?;
                let limit = u64::try_from(self.take()?).ok()?;
                let name = self.registry.name(group).map(|name| name.as_ref().to_owned());
                let queue = name.unwrap_or_else(|| group.to_string());
                Some(Err(Error::QueueFull { queue, limit }))
            }
            _ => None,
        }
    }

    fn committed(&mut self, transaction: &Transaction) -> Option<Committed> {
        let mut committed = Committed::default();
        let mut figures = usize::try_from(self.take()?).ok()?;
        for op in &transaction.ops {
            let publish = matches!(op, Op::Publish(_));
            if !publish && !matches!(op, Op::Put { .. }) {
                continue;
            }
            let figure = self.take()?;
            figures = figures.checked_sub(1)?;
            if publish {
                let queues = u32::try_from(figure.max(0)).ok()?;
                committed.published.push(Accepted { duplicate: figure < 0, queues });
            } else {
                committed.versions.push(u64::try_from(figure).ok()?);
            }
        }
        (figures == 0).then_some(committed)
    }
}
