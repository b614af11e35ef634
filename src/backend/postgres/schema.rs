//! The schema: its SQL text, its version, and how it is brought up to date.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::fault;
use crate::error::{Error, Result};

/// What each version adds; a version that was released is never changed.
const MIGRATIONS: &[&[&str]] = &[&[
    include_str!("sql/v1/tables.sql"),
    include_str!("sql/v1/parts.sql"),
    include_str!("sql/v1/commit.sql"),
    include_str!("sql/v1/joined.sql"),
    include_str!("sql/v1/claim.sql"),
    include_str!("sql/v1/groups.sql"),
    include_str!("sql/v1/messages.sql"),
    include_str!("sql/v1/care.sql"),
    include_str!("sql/v1/kept.sql"),
]];

/// What a role needs that uses the bus, and nothing more: rights, and on what of the schema. Who owns a
/// table has more, and loses nothing.
const RIGHTS: &[(&str, &[&str])] = &[
    ("select", &["migrations", "identity"]),
    ("select, update", &["registry", "token_base", "record_floor", "kept_newest"]),
    ("select, insert", &["tokens_since"]),
    ("select, insert, delete", &["tallies", "large", "kept", "kept_fresh"]),
    (
        "select, insert, update, delete",
        &[
            "groups",
            "bindings",
            "messages",
            "lanes",
            "dead_letters",
            "records",
            "dedup",
            "producers",
            "awaited",
            "kept_order",
        ],
    ),
];
/// Its sequences; those of identity columns need no right unless their numbers are taken by name.
const SEQUENCES: &[&str] = &["tokens", "deaths", "broadcasts", "dead_letters_no_seq"];

/// The version that this build makes and needs.
pub(super) const KNOWN: usize = MIGRATIONS.len();

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

    /// Returns the statement by which a session begins to listen to notifications, or ends it.
    pub(super) fn listen(&self, on: bool) -> String {
        format!("{} \"{}\"; ", if on { "listen" } else { "unlisten" }, self.channel())
    }

    /// Returns the statements by which a session listens to broadcasts, and says so.
    pub(super) fn hear(&self) -> String {
        self.listen(true) + &self.sql("select @schema@.hear()")
    }

    /// Creates or updates the schema, or only checks its version.
    pub(super) async fn prepare(&self, client: &Client, migrate: bool) -> Result<()> {
        let found = self.found(client).await?;
        if found == KNOWN {
            return Ok(());
        }
        if !migrate {
            return Err(refused(format!(
                "schema {:?} {}, this build needs version {KNOWN}; run `eventbus migrate`, or \
                 connect once with migrate=true, as a role that may create it",
                self.name,
                if found == 0 { "is missing".to_owned() } else { format!("is at version {found}") },
            )));
        }
        self.migrate(client).await.map_err(|error| unusable(&error))
    }

    /// Returns the version that is there, 0 when there is none.
    ///
    /// # Errors
    /// `Config` for one that this build does not know.
    pub(super) async fn found(&self, client: &Client) -> Result<usize> {
        let found = self.version(client).await.map_err(|error| unusable(&error))?;
        if found > KNOWN {
            return Err(refused(format!(
                "schema {:?} is at version {found}, this build knows {KNOWN}: it is too old for \
                 it; install a newer eventbus",
                self.name
            )));
        }
        Ok(found)
    }

    /// Returns the statements that bring a version up to date, as one script.
    pub(super) fn script(&self, found: usize) -> String {
        if found == KNOWN {
            return String::new();
        }
        let mut script = self.begin().replace("; ", ";\n");
        script.push_str(";\n");
        for (index, files) in MIGRATIONS.iter().enumerate().skip(found) {
            files.iter().for_each(|text| script.push_str(text));
            script.push_str(&note(index + 1));
            script.push_str(";\n");
        }
        script.push_str("commit;\n");
        script
    }

    /// Returns the statements that let a role use the bus without rights to change the schema; `anew`
    /// takes away first what an earlier version gave.
    pub(super) fn grants(&self, role: &str, anew: bool) -> String {
        let role = format!("\"{}\"", role.replace('"', "\"\""));
        let named = |names: &[&str]| {
            names.iter().map(|name| format!("@schema@.{name}")).collect::<Vec<_>>().join(", ")
        };
        let mut lines = Vec::new();
        if anew {
            lines.push(format!("revoke all on all tables in schema @schema@ from {role}"));
            lines.push(format!("revoke all on all sequences in schema @schema@ from {role}"));
        }
        lines.push(format!("grant usage on schema @schema@ to {role}"));
        for (rights, tables) in RIGHTS {
            lines.push(format!("grant {rights} on {} to {role}", named(tables)));
        }
        lines.push(format!("grant usage on sequence {} to {role}", named(SEQUENCES)));
        self.sql(&(lines.join(";\n") + ";\n"))
    }

    /// Whether a role has the tables' own rights, as their owner or a member of it.
    pub(super) async fn is_owner(&self, client: &Client, role: &str) -> Result<bool> {
        let role = role.replace('\\', r"\\").replace('\'', "''");
        let text = self.sql(&format!(
            "select pg_has_role(E'{role}', c.relowner, 'usage') from pg_class c \
             where c.oid = '@schema@.migrations'::regclass"
        ));
        is_true(client, &text).await.map_err(|error| unusable(&error))
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

    /// Returns which bus the schema holds.
    pub(super) async fn identity(&self, client: &Client) -> Result<String> {
        let text = self.sql("select id::text from @schema@.identity");
        let found = first_text(client, &text).await.map_err(|error| unusable(&error))?;
        found.ok_or_else(|| refused(format!("schema {:?} does not say which bus it is", self.name)))
    }

    /// Returns what comes before every migration.
    fn begin(&self) -> String {
        // Creating what is there needs rights all the same, so it is looked for first.
        self.sql(
            "begin isolation level read committed; \
             set local standard_conforming_strings to on; \
             select pg_advisory_xact_lock(hashtext('eventbus migration @schema@')); \
             do $$ begin \
                 if to_regnamespace('@schema@') is null then create schema @schema@; end if; \
             end $$; \
             set local search_path to @schema@, pg_temp; \
             create table if not exists migrations ( \
                 version integer primary key, applied_at timestamptz not null default now())",
        )
    }

    /// One transaction under a lock that ends with it: of many clients that start, one migrates.
    pub(super) async fn migrate(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let begin = self.begin();
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
            client.batch_execute(&note(index + 1)).await?;
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

fn note(version: usize) -> String {
    format!("insert into migrations (version) values ({version})")
}

fn refused(problem: String) -> Error {
    Error::Config { problems: vec![problem] }
}

pub(super) fn unusable(error: &tokio_postgres::Error) -> Error {
    let remedy = match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            "; run `eventbus migrate` as a role that may, with --grant-role for this one"
        }
        _ => "",
    };
    refused(format!("the schema cannot be brought up to date: {}{remedy}", fault::text(error)))
}
