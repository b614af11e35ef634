//! Bringing a schema up to date by itself, for operators.

use tokio_postgres::Client;

use super::connect::Connector;
use super::live;
use super::schema::{KNOWN, Schema, unusable};
use crate::config::PostgresConfig;
use crate::error::{Error, Result};

/// What a migration did, or would do.
#[derive(Debug, Clone)]
pub struct Migration {
    /// The version that was there; 0 = none.
    pub found: usize,
    /// The version of this build.
    pub known: usize,
    /// Every statement, as a script for `psql`.
    pub statements: String,
}

/// Brings the schema up to date; with a role, lets it use the bus. Without `apply` nothing changes.
///
/// # Errors
/// `Connect` when the server cannot be reached, `Config` when it cannot be used, the schema is of a
/// newer build, or the rights are missing.
pub async fn migrate(
    config: &PostgresConfig,
    grant_role: Option<&str>,
    apply: bool,
) -> Result<Migration> {
    config.validate()?;
    if grant_role.is_some_and(|role| role.is_empty() || role.len() > 63 || role.contains('\0')) {
        let problem = "grant_role must be 1 to 63 bytes without NUL".to_owned();
        return Err(Error::Config { problems: vec![problem] });
    }
    let connector = Connector::new(config)?;
    let (client, wire) = connector.open().await?;
    let work = async {
        live::examine(&connector, &client).await?;
        run(&client, &Schema::new(&config.schema), grant_role, apply).await
    };
    tokio::select! {
        // The connection ends first only when it breaks, and then the work fails by itself.
        biased;
        done = work => done,
        ended = wire => {
            let reason = ended.err().map_or_else(|| "closed".to_owned(), |error| error.to_string());
            Err(connector.failed(&reason))
        }
    }
}

async fn run(
    client: &Client,
    schema: &Schema,
    grant_role: Option<&str>,
    apply: bool,
) -> Result<Migration> {
    let found = schema.found(client).await?;
    let grants = match grant_role {
        Some(role) => {
            // Taken from the owner, its rights would be gone for the schema's own work.
            let anew = found > 0 && !schema.is_owner(client, role).await?;
            schema.grants(role, anew)
        }
        None => String::new(),
    };
    let statements = schema.script(found) + &grants;
    if apply {
        if found < KNOWN {
            schema.migrate(client).await.map_err(|error| unusable(&error))?;
        }
        if !grants.is_empty() {
            client.batch_execute(&grants).await.map_err(|error| unusable(&error))?;
        }
    }
    Ok(Migration { found, known: KNOWN, statements })
}
