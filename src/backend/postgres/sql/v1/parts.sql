-- What the functions of clients are made of: clock, channel, lanes, ends of messages.

-- These two have no settings and are as volatile as what they call: so they are inlined, and a call
-- does not parse them again. Who calls them has the search path.
create function now_us() returns bigint language sql volatile as $$
    select (extract(epoch from clock_timestamp()) * 1000000)::bigint
$$;

create function channel() returns text language sql stable as $$
    select 'eventbus:' || current_schema()
$$;

-- Holds a version of the registry until the end of the transaction: a declaration waits for whoever
-- publishes by an older one. Who names an old one is refused, and never waits for the declaration.
create function hold_registry(p_channel text, p_version integer) returns void
language plpgsql set search_path from current as $$
declare
    v_version integer;
begin
    if current_setting('transaction_isolation') = 'read committed' then
        -- Two statements: the look must be younger than the lock, or a declaration that ended
        -- between them would have waited for nobody.
        if pg_try_advisory_xact_lock_shared(hashtext(p_channel), p_version) then
            select r.version into v_version from registry r;
        end if;
        if v_version is distinct from p_version then
            raise exception 'the registry is not at version % any more', p_version
                using errcode = 'EB001';
        end if;
        return;
    end if;
    -- An older snapshot cannot see a newer version, but the lock on its row fails then.
    perform 1 from registry r where r.version = p_version for key share;
    if not found or not pg_try_advisory_xact_lock_shared(hashtext(p_channel), p_version) then
        raise exception 'the registry has changed since this transaction began; run it again'
            using errcode = '40001';
    end if;
end $$;

-- Says that this session listens to broadcasts, from now on until its end. Who tries to have this
-- lock alone learns whether anybody does; whoever gets it keeps it until its end, and who begins to
-- listen waits for that: so only transactions that end at once may try. Of two that try at the same
-- time one is told that somebody listens.
create function hear() returns void
language sql volatile set search_path from current as $$
    select pg_advisory_lock_shared(hashtext(channel()), 2147483647)
$$;

-- Tells whoever waits for one of the groups.
create function wake(p_group integer[]) returns void
language plpgsql set search_path from current as $$
begin
    perform pg_notify(channel(), 'w' || array_to_string(p_group, ','));
end $$;

-- Sends a text to channels of its own: 'd', the names with commas, a space, the text.
create function send_foreign(p_text text) returns void
language plpgsql set search_path from current as $$
declare
    v_end integer := position(' ' in p_text);
    v_name text;
begin
    foreach v_name in array string_to_array(substr(p_text, 2, v_end - 2), ',') loop
        perform pg_notify(v_name, substr(p_text, v_end + 1));
    end loop;
end $$;

-- Returns the id of a group by name.
create function find_group(p_name text) returns integer
language plpgsql set search_path from current as $$
declare
    v_id integer;
begin
    select g.id into v_id from groups g where g.name = p_name and not g.deleted;
    if v_id is null then
        raise exception 'no group "%"', p_name using errcode = 'EB005';
    end if;
    return v_id;
end $$;

-- Takes the lanes of keys, in one order for everybody.
create function lock_lanes(p_group integer[], p_key text[]) returns void
language plpgsql set search_path from current as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        -- An older snapshot shows messages that are gone. Their lanes were changed or removed with
        -- them, so these locks fail (40001) instead of leaving a copy behind a head that no
        -- settlement will ever free.
        perform 1 from lanes l
        join (
            select distinct t.g, t.k collate "C" as k from unnest(p_group, p_key) as t (g, k)
            where t.k is not null
        ) u on l.group_id = u.g and l.key = u.k
        order by l.group_id, l.key for update of l;
    end if;
    insert into lanes (group_id, key)
    select distinct t.g, t.k collate "C" from unnest(p_group, p_key) as t (g, k)
    where t.k is not null order by 1, 2
    on conflict (group_id, key) do update set group_id = excluded.group_id;
end $$;

-- Lets the heads of keys go; the caller holds their lanes.
create function free_lanes(p_group integer[], p_key text[]) returns void
language plpgsql set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
begin
    update messages m set state = 0
    from (select distinct t.g, t.k from unnest(p_group, p_key) as t (g, k) where t.k is not null) l
    cross join lateral (
        select h.seq, h.state from messages h
        where h.group_id = l.g and h.key = l.k order by h.seq limit 1
    ) head
    where m.seq = head.seq and head.state = 1;
    delete from lanes l
    using (select distinct t.g, t.k from unnest(p_group, p_key) as t (g, k)) u
    where l.group_id = u.g and l.key = u.k
        and not exists (
            select 1 from messages h where h.group_id = l.group_id and h.key = l.key
        );
end $$;

-- Returns those of the messages whose lanes could be taken without waiting, or that have no key.
create function free_to_move(p_seq bigint[]) returns bigint[]
language plpgsql set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
declare
    v_keyed boolean;
    v_free bigint[];
begin
    select bool_or(m.key is not null) into v_keyed from messages m where m.seq = any (p_seq);
    if not coalesce(v_keyed, false) then
        return p_seq;
    end if;
    with wanted as (
        select distinct m.group_id, m.key from messages m
        where m.seq = any (p_seq) and m.key is not null
    ), taken as materialized (
        select l.group_id, l.key from lanes l join wanted using (group_id, key)
        order by l.group_id, l.key for update of l skip locked
    )
    select array_agg(m.seq) into v_free from messages m left join taken t using (group_id, key)
    where m.seq = any (p_seq) and (m.key is null or t.key is not null);
    return coalesce(v_free, '{}');
end $$;

-- Removes messages that are not claimed and counts them as removed; returns how many. The caller
-- holds their lanes.
create function discard(p_seq bigint[]) returns bigint
language plpgsql set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
declare
    v_count bigint;
    v_group integer[];
    v_key text[];
begin
    with gone as (
        delete from messages m where m.seq = any (p_seq) and m.state <> 3
        returning m.group_id, m.key
    ), counted as (
        insert into tallies (group_id, removed) select group_id, count(*) from gone group by 1
    )
    select count(*), array_agg(group_id) filter (where key is not null),
        array_agg(key) filter (where key is not null)
    into v_count, v_group, v_key from gone;
    if v_key is not null then
        perform free_lanes(v_group, v_key);
    end if;
    return v_count;
end $$;

-- Moves messages to the dead letters. The caller holds their rows and lanes.
create function bury(p_seq bigint[], p_reason smallint, p_error text) returns void
language plpgsql set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
declare
    v_group integer[];
    v_key text[];
begin
    with gone as (
        delete from messages m where m.seq = any (p_seq) returning m.*
    ), counted as (
        insert into tallies (group_id, dead) select group_id, count(*) from gone group by 1
    ), numbered as (
        select g.*, nextval(pg_get_serial_sequence('dead_letters', 'no')) as no
        from (select * from gone order by seq) g
    ), kept as (
        insert into dead_letters (no, place, died_at, ttl, id, group_id, binding, attempts, crashes,
            priority, reason, pattern, text, topic, key, unique_key, is_news, error, body)
        overriding system value
        select n.no,
            coalesce(
                (select min(d.place) from dead_letters d where d.group_id = n.group_id and d.id = n.id),
                min(n.no) over (partition by n.group_id, n.id)),
            now_us(), n.ttl, n.id, n.group_id, n.binding, n.attempts, n.crashes, n.priority,
            p_reason, b.pattern, b.text, n.topic, n.key, n.unique_key, p_reason in (2, 3, 5, 6),
            coalesce(p_error, n.error, ''), n.body
        from numbered n join bindings b on b.group_id = n.group_id and b.binding = n.binding
    )
    select array_agg(group_id), array_agg(key) into v_group, v_key
    from gone where key is not null;
    if v_key is not null then
        perform free_lanes(v_group, v_key);
    end if;
end $$;

-- Buries what waits and may no longer be delivered.
create function expire(p_group integer) returns void
language plpgsql set search_path from current
set jit = off set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off
set enable_bitmapscan = off as $$
declare
    v_now bigint := now_us();
    v_seq bigint[];
begin
    if not exists (
        select 1 from messages m
        where m.group_id = p_group and m.expires_at is not null and m.state <> 3
            and m.expires_at <= v_now
    ) then
        return;
    end if;
    select array_agg(x.seq) into v_seq from (
        select m.seq from messages m
        where m.group_id = p_group and m.expires_at is not null and m.state <> 3
            and m.expires_at <= v_now
        order by m.expires_at limit 10000 for update skip locked
    ) x;
    v_seq := free_to_move(v_seq);
    if cardinality(v_seq) > 0 then
        perform bury(v_seq, 5::smallint, 'not delivered before its time to live ended');
    end if;
end $$;

-- Does what time has brought to a group: leases that ran out, messages now due, ended times to live,
-- and with `p_max_deliveries` what crashed too often. Never waits for a lock.
create function sweep(p_group integer, p_max_deliveries integer) returns void
language plpgsql set search_path from current
set jit = off set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off
set enable_bitmapscan = off as $$
declare
    v_now bigint := now_us();
    v_seq bigint[];
    v_error text;
begin
    if exists (
        select 1 from messages m
        where m.group_id = p_group and m.state >= 2 and m.due_at <= v_now
    ) then
        -- What was claimed goes back to its place; where its binding is gone, away.
        with late as materialized (
            select m.seq, m.binding from messages m
            where m.group_id = p_group and m.state >= 2 and m.state = 3 and m.due_at <= v_now
            order by m.due_at limit 1000 for update skip locked
        ), back as (
            update messages m
            set state = case when b.bound then 0 else 2 end, token = 0, due_at = v_now
            from late left join bindings b on b.group_id = p_group and b.binding = late.binding
            where m.seq = late.seq
            returning m.seq, m.state
        ), counted as (
            insert into tallies (group_id, expired_leases)
            select p_group, count(*) from back having count(*) > 0
        )
        select array_agg(seq) filter (where state = 2) into v_seq from back;
        if v_seq is not null then
            v_seq := free_to_move(v_seq);
            perform discard(v_seq);
        end if;
        select array_agg(x.seq) into v_seq from (
            select m.seq from messages m
            where m.group_id = p_group and m.state >= 2 and m.state = 2 and m.due_at <= v_now
            order by m.due_at limit 1000 for update skip locked
        ) x;
        if v_seq is not null then
            v_seq := free_to_move(v_seq);
            update messages m set due_at = v_now, state = case
                when m.key is not null and exists (
                    select 1 from messages h
                    where h.group_id = p_group and h.key = m.key and h.seq < m.seq
                ) then 1 else 0 end
            where m.seq = any (v_seq);
        end if;
    end if;
    perform expire(p_group);
    if p_max_deliveries is not null then
        select array_agg(x.seq) into v_seq from (
            select m.seq from messages m
            where m.group_id = p_group and m.state = 0 and m.crashes > 0
                and m.crashes >= p_max_deliveries
            limit 1000 for update skip locked
        ) x;
        if v_seq is not null then
            v_seq := free_to_move(v_seq);
            v_error := format('claimed %s times without settle or release; limit %s',
                p_max_deliveries, p_max_deliveries);
            perform bury(v_seq, 2::smallint, v_error);
        end if;
    end if;
end $$;

-- Ends a claim; false when its token is no longer current. p_outcome: 0 ack, 1 retry, 2 dead,
-- 3 release, 4 defer, 5 crash.
create function settle(
    p_group integer, p_binding integer, p_id uuid, p_token bigint,
    p_outcome smallint, p_after bigint, p_reason smallint, p_error text
) returns boolean
language plpgsql set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
declare
    v record;
    v_due bigint;
begin
    select m.seq, m.key, coalesce(b.bound, false) as bound into v
    from messages m
    left join bindings b on b.group_id = m.group_id and b.binding = m.binding
    -- By id: the odd forms keep the planner from the index of all that is claimed.
    where m.id = p_id and m.group_id + 0 = p_group and m.binding = p_binding
        and m.token = p_token and m.state + 0 = 3
    for update of m;
    if not found then
        return false;
    end if;
    if p_outcome = 2 then
        if v.key is not null then
            perform lock_lanes(array[p_group], array[v.key]);
        end if;
        update messages m
        set crashes = crashes - 1, attempts = attempts + (p_reason = 0)::integer
        where m.seq = v.seq;
        perform bury(array[v.seq], p_reason, p_error);
    elsif p_outcome = 0 or not v.bound then
        if v.key is not null then
            perform lock_lanes(array[p_group], array[v.key]);
        end if;
        delete from messages m where m.seq = v.seq;
        insert into tallies (group_id, acked, retried, removed)
        values (p_group, (p_outcome = 0)::integer, (p_outcome = 1)::integer,
            (p_outcome <> 0)::integer);
        if v.key is not null then
            perform free_lanes(array[p_group], array[v.key]);
        end if;
    else
        v_due := now_us() + coalesce(p_after, 0);
        -- A claimed message is the head of its key, and stays it.
        update messages m set
            state = case when coalesce(p_after, 0) > 0 then 2 else 0 end,
            due_at = v_due, token = 0, crashes = crashes - (p_outcome <> 5)::integer,
            attempts = attempts + (p_outcome = 1)::integer,
            error = case when p_outcome = 1 then p_error else error end
        where m.seq = v.seq;
        if p_outcome = 1 then
            insert into tallies (group_id, retried) values (p_group, 1);
        end if;
    end if;
    return true;
end $$;
