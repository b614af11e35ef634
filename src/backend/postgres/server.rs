//! Which server a connection leads to, and how transactions begin there by themselves.

use tokio_postgres::{Client, Error, SimpleQueryMessage};

/// What a new connection shows of its server.
#[derive(Debug, Default)]
pub(super) struct Server {
    /// The cluster, the start of the server and its timeline: another value means another server, or
    /// one that was restarted or promoted. Empty where the server does not say.
    pub(super) identity: String,
    pub(super) is_standby: bool,
    /// Whether transactions begin in another isolation than READ COMMITTED, as the database or the
    /// role has it. The functions of the schema must see what others commit while they wait.
    pub(super) is_isolated: bool,
}

const LOOK: &str = "select extract(epoch from pg_postmaster_start_time())::text || '/' || \
         case when pg_is_in_recovery() then 'standby' \
             else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end, \
     pg_is_in_recovery(), \
     current_setting('default_transaction_isolation') <> 'read committed'";

/// Asked last: it may be forbidden to a role, and the rest tells servers apart as well.
const SYSTEM: &str = "select system_identifier::text from pg_control_system()";

impl Server {
    /// Asks a connection; simple queries only, as they work behind every pooler.
    pub(super) async fn look(client: &Client) -> Result<Self, Error> {
        let Some([identity, standby, isolated]) = ask(client, LOOK).await? else {
            return Ok(Self::default());
        };
        let system = ask::<1>(client, SYSTEM).await?.map(|[id]| id).unwrap_or_default();
        Ok(Self {
            identity: format!("{system}/{identity}"),
            is_standby: standby == "t",
            is_isolated: isolated == "t",
        })
    }
}

/// Returns the first row of an answer; `None` when the server refuses to say it.
async fn ask<const N: usize>(client: &Client, text: &str) -> Result<Option<[String; N]>, Error> {
    let answers = match client.simple_query(text).await {
        Ok(answers) => answers,
        Err(error) if error.as_db_error().is_some() && !client.is_closed() => return Ok(None),
        Err(error) => return Err(error),
    };
    let row = answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let value = |row: &tokio_postgres::SimpleQueryRow, index| {
        row.get(index).map(str::to_owned).unwrap_or_default()
    };
    Ok(row.map(|row| std::array::from_fn(|index| value(row, index))))
}
