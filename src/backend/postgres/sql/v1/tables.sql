-- The tables of one bus; docs/decisions/0010-postgres-tables.md says why they look so.
-- All times are microseconds since the epoch by the server's clock.

-- One row: the version of what is bound to what. Publishers name the version they routed by.
create table registry (
    one boolean primary key default true check (one),
    version integer not null,
    -- For how long (null = for ever) and how many broadcasts are kept for replay.
    kept_age bigint,
    kept_max bigint not null default 0,
    -- Whether notifications only name broadcasts: topics and bodies stand in `large`.
    parts boolean not null default false
);
-- A schema that is made again does not begin at a version that clients of the former may still name.
insert into registry (version) values (1 + floor(random() * 1000000000)::integer);

create table groups (
    id integer generated always as identity primary key,
    name text collate "C" not null,
    max_length bigint,
    paused boolean not null default false,
    deleted boolean not null default false,
    next_binding integer not null default 0
);
create unique index groups_name on groups (name) where not deleted;

create table bindings (
    group_id integer not null,
    binding integer not null,
    pattern boolean not null,
    text text collate "C" not null,
    -- The pattern as a regular expression, for publishers that have no matcher of their own.
    regex text,
    bound boolean not null default true,
    primary key (group_id, binding)
);
create unique index bindings_bound on bindings (group_id, pattern, text) where bound;
create index bindings_topic on bindings (text) where bound and not pattern;

-- One row per copy. state: 0 ready, 1 blocked behind its key, 2 delayed, 3 active (claimed).
create table messages (
    seq bigint generated always as identity primary key,
    -- When it is due (delayed) or its lease ends (active), else when it became ready.
    due_at bigint not null,
    accepted_at bigint not null,
    token bigint not null default 0,
    -- The number that the consumer gave its claim, by which one sent again finds what it took.
    claim bigint,
    expires_at bigint,
    ttl bigint,
    id uuid not null,
    group_id integer not null,
    binding integer not null,
    attempts integer not null default 0,
    crashes integer not null default 0,
    priority smallint not null default 0,
    state smallint not null,
    topic text collate "C" not null,
    key text collate "C",
    unique_key text collate "C",
    error text,
    body bytea not null
) with (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.2, autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0, toast.autovacuum_vacuum_scale_factor = 0.02
);
-- Bodies are mostly packed already: compressing them costs more than it saves.
alter table messages alter column body set storage external;
create index messages_ready on messages (group_id, binding, priority desc, seq) where state = 0;
create index messages_due on messages (group_id, due_at) where state >= 2;
create index messages_id on messages (id);
create index messages_key on messages (group_id, key, seq) where key is not null;
create index messages_expiry on messages (group_id, expires_at)
    where expires_at is not null and state <> 3;
create index messages_crashed on messages (group_id, crashes) where state = 0 and crashes > 0;
create unique index messages_unique on messages (group_id, binding, unique_key)
    where unique_key is not null;
-- The tokens of claims rise for ever: a number of the sequence and a base. Claims do not wait for the
-- disk, so a crash can lose the newest numbers; as it also empties `tokens_since`, the first claim
-- behind it starts from a base beyond all that can be lost. Both have one row, or none.
create sequence tokens as bigint;
create table token_base (
    one boolean primary key default true check (one),
    base bigint not null
);
insert into token_base (base) values (0);
create unlogged table tokens_since (
    one boolean primary key default true check (one),
    base bigint not null
);

-- One row per (group, key) in use: who holds it decides about the order of that key.
create table lanes (
    group_id integer not null,
    key text collate "C" not null,
    primary key (group_id, key)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

-- Changes of the counters; appended, so that no two transactions meet in one row, and summed up by
-- `maintain`. Group 0 is the bus: accepted = published, removed = duplicates.
create table tallies (
    group_id integer not null,
    accepted bigint not null default 0,
    acked bigint not null default 0,
    retried bigint not null default 0,
    expired_leases bigint not null default 0,
    removed bigint not null default 0,
    dead bigint not null default 0
) with (
    autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
create index tallies_group on tallies (group_id);

create table dead_letters (
    no bigint generated always as identity primary key,
    -- The number of the first letter of the same message in this group: its copies stay together.
    place bigint not null,
    died_at bigint not null,
    ttl bigint,
    id uuid not null,
    group_id integer not null,
    binding integer not null,
    attempts integer not null,
    crashes integer not null,
    priority smallint not null,
    reason smallint not null,
    pattern boolean not null,
    text text collate "C" not null,
    topic text collate "C" not null,
    key text collate "C",
    unique_key text collate "C",
    -- Decided here, and nobody has been told.
    is_news boolean not null,
    error text not null,
    body bytea not null
);
create index dead_letters_news on dead_letters (group_id, no) where is_news;
alter table dead_letters alter column body set storage external;
create index dead_letters_place on dead_letters (group_id, place, no);
create index dead_letters_id on dead_letters (group_id, id);
create index dead_letters_age on dead_letters (died_at);

-- A row without value is the tombstone of a deleted key: versions are never used twice.
create table records (
    key text collate "C" primary key,
    version bigint not null,
    expires_at bigint,
    died bigint,
    value bytea
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
alter table records alter column value set storage external;
create index records_expiry on records (expires_at) where expires_at is not null;
create index records_died on records (died) where died is not null;
create sequence deaths as bigint;
-- One row: no forgotten tombstone was above it, so a key without one starts after it.
create table record_floor (
    one boolean primary key default true check (one),
    version bigint not null
);
insert into record_floor (version) values (0);

create table dedup (
    topic text collate "C" not null,
    id text collate "C" not null,
    until_at bigint not null,
    primary key (topic, id)
);
create index dedup_until on dedup (until_at);

-- The last parcel of each committing client and its answer, for the client whose answer was lost.
create table producers (
    producer uuid primary key,
    parcel bigint not null,
    used_at bigint not null,
    lost integer[],
    results bigint[]
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

-- Broadcasts that do not fit into a notification, or must not stand there.
create table large (
    id uuid primary key,
    stored_at bigint not null,
    topic text collate "C",
    body bytea not null
);
alter table large alter column body set storage external;
create index large_age on large (stored_at);
create sequence broadcasts as bigint;

-- Until when somebody may wait for a group: publishers notify only then. A hint, so not logged.
create unlogged table awaited (
    group_id integer primary key,
    until_at bigint not null
) with (fillfactor = 50);
