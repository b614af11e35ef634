//! One plain publish that travels alone, as its script reads it.

use redis::Cmd;

use super::batch::{Batch, Header, is_plain};
use super::scripts::Calling;
use super::{message, scripts};
use crate::backend::{Op, Transaction, identity};

/// Returns the command for a batch that is one plain publish of a new event, kept by one queue at most
/// and not for replay, with what reads its answer; `None` for any other.
pub(super) fn write(
    header: &Header<'_>,
    calling: Calling,
    prefix: &str,
    transactions: &[&Transaction],
) -> Option<(Cmd, Batch)> {
    let [transaction] = transactions else { return None };
    let [Op::Publish(message)] = transaction.ops.as_slice() else { return None };
    if header.again || header.registry.keeps || !is_plain(message) {
        return None;
    }
    let targets = header.registry.targets(&message.topic);
    if targets.len() > 1 || (!targets.is_empty() && identity::is_again(&message.id)) {
        return None;
    }
    let (how, frame) = match (message.is_heard(), header.channels.bare) {
        (false, _) => ("0", &[][..]),
        (true, false) => ("1", &[][..]),
        (true, true) => ("2", &message.body[..]),
    };
    let is_sent = how == "1" || !targets.is_empty();
    let stored = if is_sent { message::write(message) } else { Vec::new() };
    let mut command = scripts::SINGLE.call(calling, prefix);
    command
        .arg(header.registry.version.as_bytes())
        .arg(header.producer)
        .arg(header.number)
        .arg(format!("{}{}", header.channels.prefix, message.topic))
        .arg(stored)
        .arg(how)
        .arg(frame);
    for (group, queue) in &targets {
        command.arg(*group).arg(*queue);
    }
    Some((command, Batch::single(u32::try_from(targets.len()).unwrap_or(u32::MAX))))
}
