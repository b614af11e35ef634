//! The functions of the schema that the backend calls, with the types of their arguments.

use tokio_postgres::types::Type;

/// One SQL function.
#[derive(Debug)]
pub(super) struct Call {
    /// Its name in the schema.
    pub(super) name: &'static str,
    /// What is being done, for time-outs.
    pub(super) operation: &'static str,
    /// The types of its arguments.
    pub(super) types: &'static [Type],
    /// Called often enough to be prepared.
    pub(super) hot: bool,
}

macro_rules! calls {
    ($($constant:ident = $name:literal, $operation:literal, $hot:literal, [$($type:ident),*];)*) => {
        $(pub(super) const $constant: Call = Call {
            name: $name,
            operation: $operation,
            types: &[$(Type::$type),*],
            hot: $hot,
        };)*
    };
}

calls! {
    COMMIT = "commit", "commit", true, [
        UUID, INT8, INT4, INT8, INT8, INT4_ARRAY, INT4_ARRAY,
        INT4_ARRAY, TEXT_ARRAY, TEXT_ARRAY, UUID_ARRAY, TEXT_ARRAY, BYTEA_ARRAY,
        INT4_ARRAY, INT4_ARRAY, UUID_ARRAY, INT8_ARRAY,
        INT4_ARRAY, INT4_ARRAY, UUID_ARRAY, TEXT_ARRAY, BYTEA_ARRAY,
        TEXT_ARRAY, INT2_ARRAY, INT8_ARRAY, INT8_ARRAY, INT8_ARRAY,
        UUID_ARRAY, INT4_ARRAY, INT4_ARRAY,
        INT4_ARRAY, INT2_ARRAY, UUID_ARRAY, TEXT_ARRAY, BYTEA_ARRAY, TEXT_ARRAY,
        TEXT_ARRAY, TEXT_ARRAY, TEXT_ARRAY, INT2_ARRAY, INT8_ARRAY,
        INT4_ARRAY, INT4_ARRAY, INT2_ARRAY, INT8_ARRAY, INT8_ARRAY, INT8_ARRAY,
        INT4_ARRAY, INT4_ARRAY, TEXT_ARRAY, UUID_ARRAY,
        UUID_ARRAY, TEXT_ARRAY, BYTEA_ARRAY, UUID_ARRAY
    ];
    ANNOUNCE = "announce", "commit", true, [INT4, TEXT_ARRAY];
    CLAIM = "claim", "claim", true,
        [TEXT, BOOL_ARRAY, TEXT_ARRAY, INT4, INT8, INT4, INT8, INT8, BOOL];
    PEEK = "peek", "wait", true, [TEXT, BOOL_ARRAY, TEXT_ARRAY, INT8];
    RENEW = "renew", "renew", true, [INT4_ARRAY, INT4_ARRAY, UUID_ARRAY, INT8_ARRAY, INT8];
    ROUTES = "routes", "connect", false, [];
    DECLARE = "declare_group", "declare_group", false,
        [TEXT, INT8, BOOL_ARRAY, TEXT_ARRAY, TEXT_ARRAY];
    QUIESCE = "quiesce", "declare_group", false, [INT4];
    UNBIND = "unbind", "unbind", false, [TEXT, BOOL_ARRAY, TEXT_ARRAY];
    CLEAR_UNBOUND = "clear_unbound", "unbind", false, [TEXT];
    DELETE_GROUP = "delete_group", "delete_group", false, [TEXT];
    DROP_GROUP = "drop_group", "delete_group", false, [INT4];
    PURGE = "purge", "purge", false, [TEXT];
    PAUSE = "pause", "pause", false, [TEXT, BOOL];
    MESSAGES = "event_messages", "message", false, [TEXT, UUID, UUID, UUID, INT8];
    ACT_ON = "act_on_event", "act_on", false, [TEXT, UUID, UUID, UUID, INT8, INT2, INT8];
    LIST_DEAD = "list_dead", "dead_letters", false, [TEXT, UUID, INT8, INT8, INT8];
    DEAD_NEWS = "dead_news", "dead_news", false, [TEXT];
    RETRY_DEAD = "retry_dead", "retry_dead", false, [TEXT, UUID_ARRAY, INT8, INT8];
    DISCARD_DEAD = "discard_dead", "discard_dead", false, [TEXT, UUID_ARRAY, INT8, INT8];
    SWEEP_ALL = "sweep_all", "inspect", false, [INT8, INT8];
    FIGURES = "figures", "inspect", false, [];
    MAINTAIN = "maintain", "maintain", false, [INT8, BOOL, INT8, INT8, INT8];
    DEAD_MESSAGES = "dead_messages", "maintain", false, [];
    AILMENTS = "ailments", "maintain", false, [];
    READ_RECORDS = "read_records", "read", true, [TEXT_ARRAY];
    SCAN_RECORDS = "scan_records", "scan", true, [TEXT, TEXT, TEXT, INT8];
    RETAIN = "retain", "connect", false, [INT8, INT8];
    SET_BODIES = "set_bodies", "connect", false, [BOOL];
    FIND_KEPT = "find_kept", "replay", false, [INT2, INT8, UUID];
    READ_KEPT = "read_kept", "replay", true, [INT8, INT4, INT8, TEXT_ARRAY, TEXT_ARRAY];
    TRIM_KEPT = "trim_kept", "maintain", false, [];
    FETCH_LARGE = "fetch_large", "listen", true, [UUID_ARRAY];
}

/// The types of a call's answer are those of the schema: a mismatch is a bug or a foreign schema.
pub(super) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a tokio_postgres::Row,
    index: usize,
) -> crate::error::Result<T> {
    row.try_get(index).map_err(|error| crate::error::Error::Internal { reason: error.to_string() })
}

impl Call {
    /// Returns the statement that calls it.
    pub(super) fn text(&self) -> String {
        let arguments: Vec<_> = (1..=self.types.len()).map(|n| format!("${n}")).collect();
        format!("select * from @schema@.{}({})", self.name, arguments.join(", "))
    }
}
