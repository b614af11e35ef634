//! The schema: its SQL text, its version, and how it is brought up to date.

use tokio_postgres::Client;

use super::fault;
use crate::error::{Error, Result};

/// What each version adds; a version that was released is never changed.
const MIGRATIONS: &[&[&str]] = &[&[
    include_str!("sql/v1/tables.sql"),
    include_str!("sql/v1/parts.sql"),
    include_str!("sql/v1/commit.sql"),
    include_str!("sql/v1/claim.sql"),
    include_str!("sql/v1/groups.sql"),
    include_str!("sql/v1/care.sql"),
    include_str!("sql/v1/kept.sql"),
]];

/// The name of the bus's schema. This is the one place where it enters SQL text: validated, quoted.
#[derive(Debug, Clone)]
pub(super) struct Schema {
    name: String,
}

impl Schema {
    /// Takes a name that `PostgresConfig::validate` has passed.
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Puts the quoted name where SQL text says `@schema@`.
    pub(super) fn sql(&self, text: &str) -> String {
        text.replace("@schema@", &format!("\"{}\"", self.name))
    }

    /// Returns the channel of the bus's notifications.
    pub(super) fn channel(&self) -> String {
        format!("eventbus:{}", self.name)
    }

    /// Creates or updates the schema, or only checks its version.
    pub(super) async fn prepare(&self, client: &Client, migrate: bool) -> Result<()> {
        let known = MIGRATIONS.len();
        let found = self.version(client).await.map_err(|error| unusable(&error))?;
        if found == known {
            return Ok(());
        }
        if found > known {
            return Err(refused(format!(
                "schema {:?} is at version {found}, this build knows {known}; upgrade it",
                self.name
            )));
        }
        if !migrate {
            return Err(refused(format!(
                "schema {:?} is at version {found}, this build needs {known}; connect once with \
                 migrate=true as a role that may create it",
                self.name
            )));
        }
        self.migrate(client).await.map_err(|error| unusable(&error))
    }

    async fn version(&self, client: &Client) -> Result<usize, tokio_postgres::Error> {
        let there = self.sql("select to_regclass('@schema@.migrations') is not null");
        if !is_true(client, &there).await? {
            return Ok(0);
        }
        let text = self.sql("select coalesce(max(version), 0)::text from @schema@.migrations");
        let found = first_text(client, &text).await?;
        Ok(found.and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// One transaction under a lock that ends with it: of many clients that start, one migrates.
    async fn migrate(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        // Creating what is there needs rights all the same, so it is looked for first.
        let begin = self.sql(
            "begin; \
             select pg_advisory_xact_lock(hashtext('eventbus migration @schema@')); \
             do $$ begin \
                 if to_regnamespace('@schema@') is null then create schema @schema@; end if; \
             end $$; \
             set local search_path to @schema@, pg_temp; \
             create table if not exists migrations ( \
                 version integer primary key, applied_at timestamptz not null default now())",
        );
        let done = self.apply(client, &begin).await;
        let end = if done.is_ok() { "commit" } else { "rollback" };
        let ended = client.batch_execute(end).await;
        done.and(ended)
    }

    async fn apply(&self, client: &Client, begin: &str) -> Result<(), tokio_postgres::Error> {
        client.batch_execute(begin).await?;
        let done = self.version(client).await?;
        for (index, files) in MIGRATIONS.iter().enumerate().skip(done) {
            for text in *files {
                client.batch_execute(text).await?;
            }
            let version = index + 1;
            let note = format!("insert into migrations (version) values ({version})");
            client.batch_execute(&note).await?;
        }
        Ok(())
    }
}

/// Simple queries only: they work behind every pooler, and before anything is known of the server.
async fn first_text(client: &Client, text: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let answers = client.simple_query(text).await?;
    let row = answers.iter().find_map(|answer| match answer {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(row.and_then(|row| row.get(0)).map(str::to_owned))
}

async fn is_true(client: &Client, text: &str) -> Result<bool, tokio_postgres::Error> {
    Ok(first_text(client, text).await?.as_deref() == Some("t"))
}

fn refused(problem: String) -> Error {
    Error::Config { problems: vec![problem] }
}

fn unusable(error: &tokio_postgres::Error) -> Error {
    refused(format!("the schema cannot be brought up to date: {}", fault::text(error)))
}
