//! The stored names of why a message died.

use crate::backend::DeadReason;

pub(super) fn name(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::Failed => "failed",
        DeadReason::Rejected => "rejected",
        DeadReason::Crashed => "crashed",
        DeadReason::Undecodable => "undecodable",
        DeadReason::UnknownTask => "unknown_task",
        DeadReason::Expired => "expired",
        DeadReason::Unsigned => "unsigned",
    }
}

pub(super) fn read(name: &str) -> DeadReason {
    match name {
        "failed" => DeadReason::Failed,
        "rejected" => DeadReason::Rejected,
        "crashed" => DeadReason::Crashed,
        "unknown_task" => DeadReason::UnknownTask,
        "expired" => DeadReason::Expired,
        "unsigned" => DeadReason::Unsigned,
        // What nobody here wrote cannot be read.
        _ => DeadReason::Undecodable,
    }
}
